CREATE TRIGGER guard BEFORE INSERT ON orchestration.kill_switches FOR EACH ROW EXECUTE FUNCTION orchestration.guard_kill_switch();
-- enabled: A
