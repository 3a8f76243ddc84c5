CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.policy_gate FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-008', 'P0001');
-- enabled: A
