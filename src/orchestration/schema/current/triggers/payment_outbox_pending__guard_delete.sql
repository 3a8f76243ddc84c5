CREATE TRIGGER guard_delete AFTER DELETE ON orchestration.payment_outbox_pending REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_delete();
-- enabled: A
