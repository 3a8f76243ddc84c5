CREATE TRIGGER guard BEFORE INSERT ON orchestration.transaction_attempts FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attempt_log();
-- enabled: A
