ALTER TABLE orchestration.instructions ADD CONSTRAINT uq_instructions_participant_id_id_open UNIQUE (participant_id, id, open);
