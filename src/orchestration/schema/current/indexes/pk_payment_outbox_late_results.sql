CREATE UNIQUE INDEX pk_payment_outbox_late_results ON orchestration.payment_outbox_late_results USING btree (outbox_id, result_no);
