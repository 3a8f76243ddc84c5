CREATE TRIGGER lease_expired AFTER UPDATE ON orchestration.payment_outbox_pending FOR EACH ROW WHEN (((old.lease_token = new.lease_token) AND (old.lease_expires_at > new.lease_expires_at) AND (new.lease_expires_at <= clock_timestamp()))) EXECUTE FUNCTION orchestration.record_intervention('EXPIRE_LEASE');
-- enabled: O
