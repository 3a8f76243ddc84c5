ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_attempt_no CHECK ((attempt_no >= 1));
