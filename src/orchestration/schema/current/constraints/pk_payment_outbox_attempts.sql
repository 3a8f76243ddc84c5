ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT pk_payment_outbox_attempts PRIMARY KEY (outbox_id, attempt_no, phase);
