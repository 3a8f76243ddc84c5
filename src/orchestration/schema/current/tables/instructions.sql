CREATE TABLE orchestration.instructions (
  id uuid NOT NULL,
  participant_id text NOT NULL,
  idempotency_key text NOT NULL,
  instruction_type text NOT NULL,
  end_to_end_id text NOT NULL,
  uetr uuid,
  value_date date,
  amount_minor bigint NOT NULL,
  currency text NOT NULL,
  debtor_account text NOT NULL,
  creditor_account text NOT NULL,
  payload jsonb NOT NULL,
  payload_salt bytea DEFAULT uuid_send(gen_random_uuid()) NOT NULL,
  payload_hash text NOT NULL,
  attestation_id uuid NOT NULL,
  policy_version_id text NOT NULL,
  state text DEFAULT 'RECEIVED' NOT NULL,
  open boolean GENERATED ALWAYS AS (state IN ('AUTHORIZED', 'EXECUTING')) STORED NOT NULL,
  unresolved integer DEFAULT 0 NOT NULL,
  reason text,
  version integer DEFAULT 1 NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  completed_at timestamptz,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_instructions_participant_id CHECK (
    octet_length(participant_id) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_instructions_idempotency_key CHECK (
    octet_length(idempotency_key) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_instructions_instruction_type CHECK (
    octet_length(instruction_type) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_instructions_end_to_end_id CHECK (octet_length(end_to_end_id) BETWEEN 1 AND 1000),
  CONSTRAINT ck_instructions_value_date CHECK (extract(year FROM value_date) BETWEEN 1 AND 9998),
  CONSTRAINT ck_instructions_amount_minor CHECK (amount_minor > 0),
  CONSTRAINT ck_instructions_currency CHECK (octet_length(currency) = 3 AND currency ~ '^[A-Z]*$'),
  CONSTRAINT ck_instructions_debtor_account CHECK (
    octet_length(debtor_account) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_instructions_creditor_account CHECK (
    octet_length(creditor_account) BETWEEN 1 AND 1000
  ),
  -- Common JSON parsers reject more than 500 levels or numbers of more than 1234 digits. A text of
  -- at most 1,000 bytes can contain neither of them.
  CONSTRAINT ck_instructions_payload CHECK (
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
  CONSTRAINT ck_instructions_payload_salt CHECK (octet_length(payload_salt) = 16),
  CONSTRAINT ck_instructions_payload_hash CHECK (
    payload_hash = encode(
      sha256(
        'orchestration.payload.v1'::bytea || payload_salt || convert_to(payload::text, 'UTF8')
      ),
      'hex'
    )
  ),
  CONSTRAINT ck_instructions_state CHECK (
    state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING', 'COMPLETED', 'FAILED')
  ),
  CONSTRAINT ck_instructions_reason CHECK (
    (state = 'FAILED') = (reason IS NOT NULL)
    AND octet_length(reason) >= 1
    AND octet_length(reason) <= 4000
  ),
  CONSTRAINT ck_instructions_unresolved CHECK (unresolved >= 0),
  CONSTRAINT ck_instructions_version CHECK (version >= 1),
  CONSTRAINT ck_instructions_times CHECK (
    (state IN ('COMPLETED', 'FAILED')) = (completed_at IS NOT NULL)
    AND extract(year FROM created_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT fk_instructions_attestation_id_policy_version_id
    FOREIGN KEY (attestation_id, policy_version_id)
    REFERENCES orchestration.ingress_attestations (id, policy_version_id),
  CONSTRAINT pk_instructions PRIMARY KEY (id),
  CONSTRAINT uq_instructions_participant_id_idempotency_key
    UNIQUE (participant_id, idempotency_key),
  CONSTRAINT uq_instructions_participant_id_id UNIQUE (participant_id, id),
  CONSTRAINT uq_instructions_participant_id_id_open UNIQUE (participant_id, id, open)
);

CREATE INDEX ix_instructions_attestation_id ON orchestration.instructions (attestation_id);
CREATE INDEX ix_instructions_unresolved ON orchestration.instructions (id) WHERE unresolved > 0;
CREATE INDEX ix_instructions_xact_id ON orchestration.instructions USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.instructions
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_instruction();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER kill_switch_insert AFTER INSERT ON orchestration.instructions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST', 'EACH');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER kill_switch_insert;

CREATE TRIGGER kill_switch_update AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.state IN ('AUTHORIZED', 'EXECUTING') AND NEW.state <> OLD.state)
EXECUTE FUNCTION orchestration.block_execution_if_killed('EXECUTION', 'EACH');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER kill_switch_update;

CREATE TRIGGER history_insert AFTER INSERT ON orchestration.instructions
REFERENCING NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history();

CREATE TRIGGER history_update AFTER UPDATE ON orchestration.instructions
REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history();

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.instructions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001', 'id', 'state');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.instructions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER no_truncate;

CREATE TRIGGER guard_end AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.state IN ('COMPLETED', 'FAILED') AND NEW.state <> OLD.state)
EXECUTE FUNCTION orchestration.guard_instruction_end();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_end;

CREATE TRIGGER guard_unresolved_insert AFTER INSERT ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.unresolved <> 0)
EXECUTE FUNCTION orchestration.guard_unresolved();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_unresolved_insert;

CREATE TRIGGER guard_unresolved_update AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.unresolved IS DISTINCT FROM OLD.unresolved)
EXECUTE FUNCTION orchestration.guard_unresolved();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_unresolved_update;

ALTER TABLE orchestration.instructions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.instructions
TO symphony_ingest, symphony_executor, symphony_control, symphony_auditor;
