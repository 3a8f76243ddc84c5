CREATE TRIGGER audit AFTER INSERT ON orchestration.kill_switches REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('event_no');
-- enabled: O
