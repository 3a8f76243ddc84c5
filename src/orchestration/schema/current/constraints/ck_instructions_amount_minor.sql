ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_amount_minor CHECK ((amount_minor > 0));
