CREATE TRIGGER gate BEFORE INSERT ON orchestration.kill_switches FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('kill_switch_gate');
-- enabled: A
