ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_unresolved CHECK ((unresolved >= 0));
