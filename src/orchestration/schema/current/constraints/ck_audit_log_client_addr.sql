ALTER TABLE orchestration.audit_log ADD CONSTRAINT ck_audit_log_client_addr CHECK ((masklen(client_addr) =
CASE family(client_addr)
    WHEN 4 THEN 32
    ELSE 128
END));
