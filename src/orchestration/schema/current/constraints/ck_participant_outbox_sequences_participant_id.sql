ALTER TABLE orchestration.participant_outbox_sequences ADD CONSTRAINT ck_participant_outbox_sequences_participant_id CHECK ((participant_id <> ''::text));
