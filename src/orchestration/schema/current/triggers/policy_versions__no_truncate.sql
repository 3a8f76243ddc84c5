CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.policy_versions FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102');
-- enabled: A
