ALTER TABLE orchestration.audit_log_head ADD CONSTRAINT pk_audit_log_head PRIMARY KEY (singleton);
