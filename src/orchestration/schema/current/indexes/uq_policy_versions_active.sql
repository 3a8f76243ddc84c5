CREATE UNIQUE INDEX uq_policy_versions_active ON orchestration.policy_versions USING btree (status) WHERE (status = 'ACTIVE'::text);
