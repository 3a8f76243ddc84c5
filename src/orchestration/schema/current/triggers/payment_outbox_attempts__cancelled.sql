CREATE TRIGGER cancelled AFTER INSERT ON orchestration.payment_outbox_attempts FOR EACH ROW WHEN (((new.state = 'FAILED'::text) AND (new.error_code = 'CANCELLED'::text) AND (new.requested_state IS NULL))) EXECUTE FUNCTION orchestration.record_intervention('CANCEL');
-- enabled: O
