ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_payload_salt CHECK ((octet_length(payload_salt) = 16));
