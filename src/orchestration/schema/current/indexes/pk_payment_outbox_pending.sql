CREATE UNIQUE INDEX pk_payment_outbox_pending ON orchestration.payment_outbox_pending USING btree (outbox_id);
