ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_worker_id CHECK ((worker_id <> ''::text));
