ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_participant_id CHECK (((octet_length(participant_id) >= 1) AND (octet_length(participant_id) <= 1000)));
