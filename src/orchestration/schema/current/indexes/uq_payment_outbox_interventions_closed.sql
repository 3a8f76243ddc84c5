CREATE UNIQUE INDEX uq_payment_outbox_interventions_closed ON orchestration.payment_outbox_interventions USING btree (outbox_id, result_no) WHERE (action = 'CLOSE_CONTRADICTION'::text);
