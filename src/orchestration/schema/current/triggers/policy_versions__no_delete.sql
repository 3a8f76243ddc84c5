CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.policy_versions FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102', 'id', 'status');
-- enabled: A
