ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_record_hash CHECK (((octet_length(record_hash) = 64) AND (record_hash ~ '^[0-9a-f]*$'::text)));
