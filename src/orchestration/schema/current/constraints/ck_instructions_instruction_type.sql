ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_instruction_type CHECK (((octet_length(instruction_type) >= 1) AND (octet_length(instruction_type) <= 1000)));
