CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.kill_switch_gate FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
-- enabled: A
