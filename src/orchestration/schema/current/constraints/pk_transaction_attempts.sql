ALTER TABLE orchestration.transaction_attempts ADD CONSTRAINT pk_transaction_attempts PRIMARY KEY (instruction_id, attempt_no, phase);
