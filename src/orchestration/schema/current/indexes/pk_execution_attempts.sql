CREATE UNIQUE INDEX pk_execution_attempts ON orchestration.execution_attempts USING btree (instruction_id, attempt_no, phase);
