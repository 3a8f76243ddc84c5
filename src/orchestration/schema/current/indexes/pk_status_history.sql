CREATE UNIQUE INDEX pk_status_history ON orchestration.status_history USING btree (instruction_id, version);
