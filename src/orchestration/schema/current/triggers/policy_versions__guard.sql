CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.policy_versions FOR EACH ROW EXECUTE FUNCTION orchestration.guard_policy_version();
-- enabled: A
