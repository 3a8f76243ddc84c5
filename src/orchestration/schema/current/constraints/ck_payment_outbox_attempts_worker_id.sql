ALTER TABLE orchestration.payment_outbox_attempts ADD CONSTRAINT ck_payment_outbox_attempts_worker_id CHECK (((octet_length(worker_id) >= 1) AND (octet_length(worker_id) <= 1000)));
