ALTER TABLE orchestration.instructions ADD CONSTRAINT ck_instructions_participant_id CHECK ((participant_id <> ''::text));
