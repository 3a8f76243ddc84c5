ALTER TABLE orchestration.audit_log_head ADD CONSTRAINT ck_audit_log_head_singleton CHECK (singleton);
