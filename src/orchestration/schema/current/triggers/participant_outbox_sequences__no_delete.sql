CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.participant_outbox_sequences FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-007', 'P0001', 'participant_id', 'next_sequence_id');
-- enabled: A
