CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.kill_switches FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'event_no');
-- enabled: A
