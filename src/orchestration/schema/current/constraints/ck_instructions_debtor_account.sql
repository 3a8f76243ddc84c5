ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_debtor_account CHECK (((octet_length(debtor_account) >= 1) AND (octet_length(debtor_account) <= 1000)));
