ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT ck_payment_outbox_items_idempotency_key CHECK ((idempotency_key <> ''::text));
