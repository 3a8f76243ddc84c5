CREATE UNIQUE INDEX pk_payment_outbox_interventions ON orchestration.payment_outbox_interventions USING btree (outbox_id, intervention_no);
