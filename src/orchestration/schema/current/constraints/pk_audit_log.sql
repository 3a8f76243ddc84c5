ALTER TABLE orchestration.audit_log ADD CONSTRAINT pk_audit_log PRIMARY KEY (chain_seq);
