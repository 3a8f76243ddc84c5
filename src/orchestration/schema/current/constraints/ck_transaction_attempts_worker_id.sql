ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_worker_id CHECK (((octet_length(worker_id) >= 1) AND (octet_length(worker_id) <= 1000)));
