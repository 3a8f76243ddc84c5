ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_idempotency_key CHECK ((idempotency_key <> ''::text));
