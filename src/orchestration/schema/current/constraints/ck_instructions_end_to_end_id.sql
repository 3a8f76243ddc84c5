ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_end_to_end_id CHECK ((end_to_end_id <> ''::text));
