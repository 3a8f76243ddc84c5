CREATE TRIGGER count BEFORE UPDATE ON orchestration.schema_revision FOR EACH ROW EXECUTE FUNCTION orchestration.count_schema_change();
-- enabled: O
