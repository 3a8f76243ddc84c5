ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_idempotency_key CHECK (((octet_length(idempotency_key) >= 1) AND (octet_length(idempotency_key) <= 1000)));
