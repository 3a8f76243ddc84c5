CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log_head FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
-- enabled: A
