ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT ck_transaction_attempts_attempt_no CHECK ((attempt_no >= 1));
