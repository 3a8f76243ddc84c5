ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_version CHECK ((version >= 1));
