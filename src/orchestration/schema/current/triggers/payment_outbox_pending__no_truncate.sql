CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_pending FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-009', 'P7006');
-- enabled: A
