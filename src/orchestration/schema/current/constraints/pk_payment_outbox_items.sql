ALTER TABLE orchestration.payment_outbox_items ADD CONSTRAINT pk_payment_outbox_items PRIMARY KEY (outbox_id);
