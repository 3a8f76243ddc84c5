CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_attempts FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001');
-- enabled: A
