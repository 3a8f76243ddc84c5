ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_sequence_id CHECK ((sequence_id >= 1));
