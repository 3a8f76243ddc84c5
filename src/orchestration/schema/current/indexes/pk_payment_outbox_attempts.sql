CREATE UNIQUE INDEX pk_payment_outbox_attempts ON orchestration.payment_outbox_attempts USING btree (outbox_id, attempt_no, phase);
