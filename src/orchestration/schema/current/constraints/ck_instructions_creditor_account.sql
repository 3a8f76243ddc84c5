ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_creditor_account CHECK (((octet_length(creditor_account) >= 1) AND (octet_length(creditor_account) <= 1000)));
