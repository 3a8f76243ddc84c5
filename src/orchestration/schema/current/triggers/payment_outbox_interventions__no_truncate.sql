CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_interventions FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
-- enabled: A
