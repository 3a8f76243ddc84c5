ALTER TABLE orchestration.audit_log ADD CONSTRAINT uq_audit_log_prev_hash UNIQUE (prev_hash);
