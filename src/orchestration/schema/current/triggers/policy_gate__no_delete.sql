CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.policy_gate FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-008', 'P0001');
-- enabled: A
