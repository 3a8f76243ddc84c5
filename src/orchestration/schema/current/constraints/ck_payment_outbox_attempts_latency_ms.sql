ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_latency_ms CHECK ((latency_ms >= 0));
