ALTER TABLE orchestration.execution_attempts ADD CONSTRAINT ck_execution_attempts_attempt_no CHECK ((attempt_no >= 1));
