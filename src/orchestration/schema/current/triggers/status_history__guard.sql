CREATE TRIGGER guard BEFORE INSERT ON orchestration.status_history FOR EACH ROW EXECUTE FUNCTION orchestration.guard_status_history();
-- enabled: A
