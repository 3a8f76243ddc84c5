CREATE UNIQUE INDEX uq_payment_outbox_items_key ON orchestration.payment_outbox_items USING btree (instruction_id, idempotency_key, redrive_no);
