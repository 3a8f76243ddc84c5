ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_debtor_account CHECK ((debtor_account <> ''::text));
