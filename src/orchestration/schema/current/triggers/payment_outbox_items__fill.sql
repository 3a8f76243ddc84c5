CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_items FOR EACH ROW WHEN (((new.outbox_id IS NULL) OR (new.sequence_id IS NULL) OR (new.payload_hash IS NULL))) EXECUTE FUNCTION orchestration.fill_outbox_item();
-- enabled: O
