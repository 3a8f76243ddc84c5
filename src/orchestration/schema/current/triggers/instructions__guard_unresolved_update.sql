CREATE TRIGGER guard_unresolved_update AFTER UPDATE ON orchestration.instructions FOR EACH ROW WHEN ((new.unresolved IS DISTINCT FROM old.unresolved)) EXECUTE FUNCTION orchestration.guard_unresolved();
-- enabled: A
