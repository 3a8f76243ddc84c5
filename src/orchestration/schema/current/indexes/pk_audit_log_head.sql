CREATE UNIQUE INDEX pk_audit_log_head ON orchestration.audit_log_head USING btree (singleton);
