ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_table_name CHECK (((octet_length(table_name) >= 1) AND (octet_length(table_name) <= 1000)));
