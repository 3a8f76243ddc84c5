ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_worker_id CHECK ((worker_id <> ''::text));
