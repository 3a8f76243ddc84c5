CREATE UNIQUE INDEX pk_revocation_gate ON orchestration.revocation_gate USING btree (singleton);
