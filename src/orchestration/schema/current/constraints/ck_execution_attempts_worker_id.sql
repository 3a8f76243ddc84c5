ALTER TABLE orchestration.execution_attempts ADD CONSTRAINT ck_execution_attempts_worker_id CHECK ((worker_id <> ''::text));
