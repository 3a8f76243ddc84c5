ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_instruction_type CHECK ((instruction_type <> ''::text));
