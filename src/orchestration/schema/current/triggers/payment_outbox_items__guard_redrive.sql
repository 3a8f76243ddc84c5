CREATE TRIGGER guard_redrive AFTER INSERT ON orchestration.payment_outbox_items FOR EACH ROW WHEN ((new.redrive_no > 0)) EXECUTE FUNCTION orchestration.guard_redrive();
-- enabled: A
