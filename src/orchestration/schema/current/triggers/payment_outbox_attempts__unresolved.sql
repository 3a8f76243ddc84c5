CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_attempts FOR EACH ROW WHEN ((new.state = 'FAILED'::text)) EXECUTE FUNCTION orchestration.count_unresolved();
-- enabled: O
