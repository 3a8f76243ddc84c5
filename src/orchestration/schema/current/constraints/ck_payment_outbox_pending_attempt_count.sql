ALTER TABLE orchestration.payment_outbox_pending ADD CONSTRAINT ck_payment_outbox_pending_attempt_count CHECK ((attempt_count >= 0));
