ALTER TABLE orchestration.instructions ADD CONSTRAINT uq_instructions_participant_id_id UNIQUE (participant_id, id);
