ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_end_to_end_id CHECK (((octet_length(end_to_end_id) >= 1) AND (octet_length(end_to_end_id) <= 1000)));
