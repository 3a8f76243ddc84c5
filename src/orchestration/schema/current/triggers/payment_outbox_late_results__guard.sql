CREATE TRIGGER guard BEFORE INSERT ON orchestration.payment_outbox_late_results FOR EACH ROW EXECUTE FUNCTION orchestration.guard_late_result();
-- enabled: A
