CREATE TRIGGER sequences AFTER INSERT ON orchestration.payment_outbox_items REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_outbox_sequences();
-- enabled: O
