CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.schema_revision FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'revision');
-- enabled: A
