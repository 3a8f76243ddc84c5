CREATE TRIGGER audit_update AFTER UPDATE ON orchestration.policy_versions REFERENCING OLD TABLE AS old_versions NEW TABLE AS new_versions FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_change();
-- enabled: O
