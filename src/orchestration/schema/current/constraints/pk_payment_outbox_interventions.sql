ALTER TABLE orchestration.payment_outbox_interventions ADD CONSTRAINT pk_payment_outbox_interventions PRIMARY KEY (outbox_id, intervention_no);
