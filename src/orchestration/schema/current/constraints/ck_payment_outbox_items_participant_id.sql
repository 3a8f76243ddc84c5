ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_participant_id CHECK (((octet_length(participant_id) >= 1) AND (octet_length(participant_id) <= 1000)));
