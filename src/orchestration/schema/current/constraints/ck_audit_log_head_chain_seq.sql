ALTER TABLE orchestration.audit_log_head ADD CONSTRAINT ck_audit_log_head_chain_seq CHECK ((chain_seq >= 0));
