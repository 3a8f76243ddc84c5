CREATE TRIGGER rescheduled AFTER UPDATE ON orchestration.payment_outbox_pending FOR EACH ROW WHEN (((old.lease_token IS NULL) AND (new.lease_token IS NULL) AND (old.next_attempt_at <> new.next_attempt_at))) EXECUTE FUNCTION orchestration.record_intervention('RESCHEDULE');
-- enabled: O
