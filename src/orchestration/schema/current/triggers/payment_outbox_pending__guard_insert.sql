CREATE TRIGGER guard_insert AFTER INSERT ON orchestration.payment_outbox_pending REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_insert();
-- enabled: A
