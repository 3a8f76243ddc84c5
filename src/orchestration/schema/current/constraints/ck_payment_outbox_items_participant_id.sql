ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_participant_id CHECK ((participant_id <> ''::text));
