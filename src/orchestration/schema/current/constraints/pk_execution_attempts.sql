ALTER TABLE orchestration.execution_attempts ADD CONSTRAINT pk_execution_attempts PRIMARY KEY (instruction_id, attempt_no, phase);
