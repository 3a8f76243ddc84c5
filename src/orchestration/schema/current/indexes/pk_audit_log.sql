CREATE UNIQUE INDEX pk_audit_log ON orchestration.audit_log USING btree (chain_seq);
