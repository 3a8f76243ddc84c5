ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT uq_payment_outbox_items_key UNIQUE (instruction_id, idempotency_key, redrive_no);
