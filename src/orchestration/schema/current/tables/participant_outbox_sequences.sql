CREATE TABLE orchestration.participant_outbox_sequences (
  participant_id text NOT NULL,
  next_sequence_id bigint DEFAULT 1 NOT NULL,
  CONSTRAINT ck_participant_outbox_sequences_participant_id CHECK (
    octet_length(participant_id) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_participant_outbox_sequences_next_sequence_id CHECK (next_sequence_id >= 1),
  CONSTRAINT pk_participant_outbox_sequences PRIMARY KEY (participant_id)
)
-- Every enqueue updates its participant's row. Free space on the page lets that be a HOT update.
WITH (fillfactor = 50);

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.participant_outbox_sequences
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-OUT-007', 'P0001', 'participant_id', 'next_sequence_id');
ALTER TABLE orchestration.participant_outbox_sequences ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.participant_outbox_sequences
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-007', 'P0001');
ALTER TABLE orchestration.participant_outbox_sequences ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.participant_outbox_sequences OWNER TO symphony_owner;
GRANT SELECT ON orchestration.participant_outbox_sequences TO symphony_control, symphony_auditor;
