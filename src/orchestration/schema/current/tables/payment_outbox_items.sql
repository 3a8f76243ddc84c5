CREATE TABLE orchestration.payment_outbox_items (
  outbox_id uuid NOT NULL,
  instruction_id uuid NOT NULL,
  participant_id text NOT NULL,
  sequence_id bigint NOT NULL,
  idempotency_key text NOT NULL,
  redrive_no integer DEFAULT 0 NOT NULL,
  redrive_of uuid,
  rail_type text NOT NULL,
  payload jsonb NOT NULL,
  payload_salt bytea DEFAULT uuid_send(gen_random_uuid()) NOT NULL,
  payload_hash text NOT NULL,
  max_attempts integer DEFAULT 20 NOT NULL,
  context jsonb,
  created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
  db_user text DEFAULT SESSION_USER NOT NULL,
  xact_id bigint DEFAULT pg_current_xact_id()::text::bigint NOT NULL,
  CONSTRAINT ck_payment_outbox_items_participant_id CHECK (
    octet_length(participant_id) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_payment_outbox_items_sequence_id CHECK (sequence_id >= 1),
  CONSTRAINT ck_payment_outbox_items_idempotency_key CHECK (
    octet_length(idempotency_key) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_payment_outbox_items_redrive CHECK (
    redrive_no >= 0 AND (redrive_no = 0) = (redrive_of IS NULL)
  ),
  CONSTRAINT ck_payment_outbox_items_rail_type CHECK (octet_length(rail_type) BETWEEN 1 AND 1000),
  -- Common JSON parsers reject more than 500 levels or numbers of more than 1234 digits, and a
  -- worker could never process such an item. A text of at most 1,000 bytes can contain neither of
  -- them. The expression calls only built-in functions, so that a login that inserts needs no other
  -- grant.
  CONSTRAINT ck_payment_outbox_items_payload CHECK (
    octet_length(payload::text) <= 1000000
    AND jsonb_typeof(payload) = 'object'
    AND (
      octet_length(payload::text) <= 1000
      OR NOT jsonb_path_exists(payload, 'strict $.**{501}')
        AND NOT jsonb_path_exists(
          payload,
          'strict $.** ? (@ >= $n || @ <= -$n)',
          ('{"n": 1' || repeat('0', 1234) || '}')::jsonb
        )
    )
  ),
  CONSTRAINT ck_payment_outbox_items_payload_salt CHECK (octet_length(payload_salt) = 16),
  CONSTRAINT ck_payment_outbox_items_payload_hash CHECK (
    payload_hash = encode(
      sha256(
        'orchestration.payload.v1'::bytea || payload_salt || convert_to(payload::text, 'UTF8')
      ),
      'hex'
    )
  ),
  CONSTRAINT ck_payment_outbox_items_max_attempts CHECK (max_attempts BETWEEN 1 AND 1000),
  CONSTRAINT ck_payment_outbox_items_context CHECK (
    jsonb_typeof(context) = 'object'
    AND octet_length(context::text) <= 8192
    AND (
      octet_length(context::text) <= 1000
      OR NOT jsonb_path_exists(context, 'strict $.**{501}')
        AND NOT jsonb_path_exists(
          context,
          'strict $.** ? (@ >= $n || @ <= -$n)',
          ('{"n": 1' || repeat('0', 1234) || '}')::jsonb
        )
    )
  ),
  CONSTRAINT ck_payment_outbox_items_years CHECK (
    extract(year FROM created_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT pk_payment_outbox_items PRIMARY KEY (outbox_id),
  CONSTRAINT uq_payment_outbox_items_key UNIQUE (instruction_id, idempotency_key, redrive_no),
  CONSTRAINT uq_payment_outbox_items_participant_id_sequence_id
    UNIQUE (participant_id, sequence_id)
);

CREATE INDEX ix_payment_outbox_items_xact_id
ON orchestration.payment_outbox_items USING brin (xact_id);

CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_items
FOR EACH ROW
WHEN (NEW.outbox_id IS NULL OR NEW.sequence_id IS NULL OR NEW.payload_hash IS NULL)
EXECUTE FUNCTION orchestration.fill_outbox_item();

CREATE TRIGGER guard AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_items();
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST', 'ENQUEUED');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER kill_switch;

CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_redrive();

CREATE TRIGGER sequences AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_outbox_sequences();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_items
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001', 'outbox_id');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_items
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER no_truncate;

CREATE TRIGGER guard_redrive AFTER INSERT ON orchestration.payment_outbox_items
FOR EACH ROW
WHEN (NEW.redrive_no > 0)
EXECUTE FUNCTION orchestration.guard_redrive();
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER guard_redrive;

ALTER TABLE orchestration.payment_outbox_items OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_items
TO symphony_executor, symphony_control, symphony_auditor;
