CREATE UNIQUE INDEX uq_audit_log_prev_hash ON orchestration.audit_log USING btree (prev_hash);
