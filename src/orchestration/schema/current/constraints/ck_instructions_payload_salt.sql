ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_payload_salt CHECK ((octet_length(payload_salt) = 16));
