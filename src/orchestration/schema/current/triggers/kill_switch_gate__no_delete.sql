CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.kill_switch_gate FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
-- enabled: A
