ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_table_name CHECK ((table_name <> ''::text));
