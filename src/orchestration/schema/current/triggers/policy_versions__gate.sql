CREATE TRIGGER gate BEFORE INSERT OR UPDATE ON orchestration.policy_versions FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('policy_gate');
-- enabled: A
