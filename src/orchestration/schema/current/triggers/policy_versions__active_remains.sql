CREATE CONSTRAINT TRIGGER active_remains AFTER INSERT OR UPDATE ON orchestration.policy_versions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION orchestration.check_active_policy_remains();
-- enabled: A
