CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.schema_revision FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
-- enabled: A
