CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.execution_attempts FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
-- enabled: A
