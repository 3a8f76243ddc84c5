CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_interventions FOR EACH ROW EXECUTE FUNCTION orchestration.fill_intervention();
-- enabled: O
