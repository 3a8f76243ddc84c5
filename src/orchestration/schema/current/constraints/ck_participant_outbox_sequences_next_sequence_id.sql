ALTER TABLE orchestration.participant_outbox_sequences ADD CONSTRAINT ck_participant_outbox_sequences_next_sequence_id CHECK ((next_sequence_id >= 1));
