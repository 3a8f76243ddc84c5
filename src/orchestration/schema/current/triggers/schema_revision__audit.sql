CREATE TRIGGER audit AFTER INSERT OR UPDATE ON orchestration.schema_revision FOR EACH ROW EXECUTE FUNCTION orchestration.record_migration();
-- enabled: O
