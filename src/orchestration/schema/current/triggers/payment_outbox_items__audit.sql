CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_items REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_redrive();
-- enabled: O
