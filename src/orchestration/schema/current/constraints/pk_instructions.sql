ALTER TABLE orchestration.instructions ADD CONSTRAINT pk_instructions PRIMARY KEY (id);
