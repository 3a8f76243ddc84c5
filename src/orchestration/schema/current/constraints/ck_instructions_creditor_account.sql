ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_creditor_account CHECK ((creditor_account <> ''::text));
