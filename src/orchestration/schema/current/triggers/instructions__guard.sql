CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.instructions FOR EACH ROW EXECUTE FUNCTION orchestration.guard_instruction();
-- enabled: A
