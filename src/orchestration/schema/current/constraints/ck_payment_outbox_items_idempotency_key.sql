ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_idempotency_key CHECK (((octet_length(idempotency_key) >= 1) AND (octet_length(idempotency_key) <= 1000)));
