CREATE TRIGGER guard BEFORE INSERT ON orchestration.audit_log FOR EACH ROW EXECUTE FUNCTION orchestration.guard_audit_log();
-- enabled: A
