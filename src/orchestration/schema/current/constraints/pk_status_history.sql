ALTER TABLE orchestration.status_history ADD CONSTRAINT pk_status_history PRIMARY KEY (instruction_id, version);
