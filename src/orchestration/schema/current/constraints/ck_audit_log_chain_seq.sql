ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_chain_seq CHECK ((chain_seq >= 1));
