CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_late_results FOR EACH ROW EXECUTE FUNCTION orchestration.count_unresolved();
-- enabled: O
