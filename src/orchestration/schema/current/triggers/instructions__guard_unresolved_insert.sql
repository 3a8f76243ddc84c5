CREATE TRIGGER guard_unresolved_insert AFTER INSERT ON orchestration.instructions FOR EACH ROW WHEN ((new.unresolved <> 0)) EXECUTE FUNCTION orchestration.guard_unresolved();
-- enabled: A
