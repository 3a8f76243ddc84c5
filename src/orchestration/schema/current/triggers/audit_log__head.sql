CREATE TRIGGER head AFTER INSERT ON orchestration.audit_log REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_audit_log_head();
-- enabled: O
