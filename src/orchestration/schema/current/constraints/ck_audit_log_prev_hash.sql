ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_prev_hash CHECK (((chain_seq = 1) = (prev_hash = ''::text)));
