CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
-- enabled: A
