CREATE UNIQUE INDEX pk_policy_gate ON orchestration.policy_gate USING btree (singleton);
