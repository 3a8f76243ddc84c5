CREATE TRIGGER guard AFTER INSERT ON orchestration.payment_outbox_attempts REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_attempts();
-- enabled: A
