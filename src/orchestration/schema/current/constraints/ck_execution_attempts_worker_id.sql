ALTER TABLE orchestration.execution_attempts ADD CONSTRAINT ck_execution_attempts_worker_id CHECK (((octet_length(worker_id) >= 1) AND (octet_length(worker_id) <= 1000)));
