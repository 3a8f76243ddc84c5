CREATE UNIQUE INDEX pk_transaction_attempts ON orchestration.transaction_attempts USING btree (instruction_id, attempt_no, phase);
