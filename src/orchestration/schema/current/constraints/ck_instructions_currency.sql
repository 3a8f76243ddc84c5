ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_currency CHECK (((octet_length(currency) = 3) AND (currency ~ '^[A-Z]*$'::text)));
