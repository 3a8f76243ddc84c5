CREATE UNIQUE INDEX pk_policy_versions ON orchestration.policy_versions USING btree (id);
