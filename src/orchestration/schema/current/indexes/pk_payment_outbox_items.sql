CREATE UNIQUE INDEX pk_payment_outbox_items ON orchestration.payment_outbox_items USING btree (outbox_id);
