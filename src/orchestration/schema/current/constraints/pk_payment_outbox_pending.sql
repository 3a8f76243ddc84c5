ALTER TABLE orchestration.payment_outbox_pending ADD CONSTRAINT pk_payment_outbox_pending PRIMARY KEY (outbox_id);
