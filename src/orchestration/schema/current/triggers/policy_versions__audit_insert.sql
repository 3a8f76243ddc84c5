CREATE TRIGGER audit_insert AFTER INSERT ON orchestration.policy_versions REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_entry();
-- enabled: O
