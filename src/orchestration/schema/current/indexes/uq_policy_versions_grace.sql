CREATE UNIQUE INDEX uq_policy_versions_grace ON orchestration.policy_versions USING btree (status) WHERE (status = 'GRACE'::text);
