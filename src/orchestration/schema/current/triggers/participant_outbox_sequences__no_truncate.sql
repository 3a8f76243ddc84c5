CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.participant_outbox_sequences FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-007', 'P0001');
-- enabled: A
