"""Create the instructions, their state machine and the history of their states.

Serves: INV-INS-001 to INV-INS-004, INV-INS-007 to INV-INS-011, INV-APP-001, INV-API-001,
INV-API-002, INV-ATT-008. INV-INS-005 and INV-INS-006 concern the outbox too and are served by
revisions 0009 and 0010.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    create_tables()
    create_view()
    create_guards()
    create_functions()
    op.execute("UPDATE orchestration.schema_revision SET revision = '0007'")
    op.execute("RESET ROLE")


def create_tables() -> None:
    op.create_table(
        "instructions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("instruction_type", sa.Text(), nullable=False),
        sa.Column("end_to_end_id", sa.Text(), nullable=False),
        sa.Column("uetr", sa.Uuid(), nullable=True),
        sa.Column("value_date", sa.Date(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("debtor_account", sa.Text(), nullable=False),
        sa.Column("creditor_account", sa.Text(), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        sa.Column(
            "payload_salt",
            sa.LargeBinary(),
            server_default=sa.text("uuid_send(gen_random_uuid())"),
            nullable=False,
        ),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("attestation_id", sa.Uuid(), nullable=False),
        sa.Column("policy_version_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'RECEIVED'"), nullable=False),
        sa.Column(
            "open",
            sa.Boolean(),
            sa.Computed(
                "state = ANY (ARRAY['AUTHORIZED'::text, 'EXECUTING'::text])", persisted=True
            ),
            nullable=False,
        ),
        sa.Column("unresolved", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "octet_length(participant_id) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_participant_id"),
        ),
        sa.CheckConstraint(
            "octet_length(idempotency_key) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_idempotency_key"),
        ),
        sa.CheckConstraint(
            "octet_length(instruction_type) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_instruction_type"),
        ),
        sa.CheckConstraint(
            "octet_length(end_to_end_id) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_end_to_end_id"),
        ),
        sa.CheckConstraint(
            "extract(year FROM value_date) BETWEEN 1 AND 9998",
            name=op.f("ck_instructions_value_date"),
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_instructions_amount_minor")),
        sa.CheckConstraint(
            "octet_length(currency) = 3 AND currency ~ '^[A-Z]*$'",
            name=op.f("ck_instructions_currency"),
        ),
        sa.CheckConstraint(
            "octet_length(debtor_account) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_debtor_account"),
        ),
        sa.CheckConstraint(
            "octet_length(creditor_account) BETWEEN 1 AND 1000",
            name=op.f("ck_instructions_creditor_account"),
        ),
        sa.CheckConstraint(
            "octet_length(payload::text) <= 1000000"
            " AND jsonb_typeof(payload) = 'object' AND (octet_length(payload::text) <= 1000"
            " OR NOT jsonb_path_exists(payload, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(payload, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name=op.f("ck_instructions_payload"),
        ),
        sa.CheckConstraint(
            "octet_length(payload_salt) = 16", name=op.f("ck_instructions_payload_salt")
        ),
        sa.CheckConstraint(
            "payload_hash = encode(sha256('orchestration.payload.v1'::bytea || payload_salt"
            " || convert_to(payload::text, 'UTF8')), 'hex')",
            name=op.f("ck_instructions_payload_hash"),
        ),
        sa.CheckConstraint(
            "state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING', 'COMPLETED', 'FAILED')",
            name=op.f("ck_instructions_state"),
        ),
        sa.CheckConstraint(
            "(state = 'FAILED') = (reason IS NOT NULL)"
            " AND octet_length(reason) >= 1 AND octet_length(reason) <= 4000",
            name=op.f("ck_instructions_reason"),
        ),
        sa.CheckConstraint("unresolved >= 0", name=op.f("ck_instructions_unresolved")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_instructions_version")),
        sa.CheckConstraint(
            "(state IN ('COMPLETED', 'FAILED')) = (completed_at IS NOT NULL)"
            " AND extract(year FROM created_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_instructions_times"),
        ),
        sa.ForeignKeyConstraint(
            ["attestation_id", "policy_version_id"],
            [
                "orchestration.ingress_attestations.id",
                "orchestration.ingress_attestations.policy_version_id",
            ],
            name=op.f("fk_instructions_attestation_id_policy_version_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instructions")),
        sa.UniqueConstraint(
            "participant_id",
            "idempotency_key",
            name=op.f("uq_instructions_participant_id_idempotency_key"),
        ),
        sa.UniqueConstraint("participant_id", "id", name=op.f("uq_instructions_participant_id_id")),
        sa.UniqueConstraint(
            "participant_id", "id", "open", name=op.f("uq_instructions_participant_id_id_open")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_instructions_attestation_id"),
        "instructions",
        ["attestation_id"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_instructions_unresolved"),
        "instructions",
        ["id"],
        schema="orchestration",
        postgresql_where=sa.text("unresolved > 0"),
    )
    op.create_index(
        op.f("ix_instructions_xact_id"),
        "instructions",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.instructions
TO symphony_ingest, symphony_executor, symphony_control, symphony_auditor
"""
    )
    op.create_table(
        "status_history",
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "CASE to_state"
            " WHEN 'RECEIVED' THEN from_state IS NULL AND version = 1"
            " WHEN 'AUTHORIZED' THEN from_state = 'RECEIVED'"
            " WHEN 'EXECUTING' THEN from_state = 'AUTHORIZED'"
            " WHEN 'COMPLETED' THEN from_state = 'EXECUTING'"
            " WHEN 'FAILED' THEN from_state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING')"
            " ELSE false END"
            " AND (from_state IS NOT NULL OR to_state = 'RECEIVED')",
            name=op.f("ck_status_history_transition"),
        ),
        sa.CheckConstraint(
            "(to_state = 'FAILED') = (reason IS NOT NULL) AND octet_length(reason) <= 4000",
            name=op.f("ck_status_history_reason"),
        ),
        sa.ForeignKeyConstraint(
            ["participant_id", "instruction_id"],
            ["orchestration.instructions.participant_id", "orchestration.instructions.id"],
            name=op.f("fk_status_history_participant_id_instruction_id"),
        ),
        sa.PrimaryKeyConstraint("instruction_id", "version", name=op.f("pk_status_history")),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_status_history_xact_id"),
        "status_history",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.status_history
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )


def create_view() -> None:
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.instruction_result
WITH (security_invoker = true)
AS
SELECT i.*, false AS replayed
FROM orchestration.instructions i;

ALTER VIEW orchestration.instruction_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.instruction_status
WITH (security_barrier = true)
AS
SELECT i.id,
       i.participant_id,
       i.idempotency_key,
       i.instruction_type,
       i.end_to_end_id,
       i.uetr,
       i.value_date,
       i.amount_minor,
       i.currency,
       i.payload_hash,
       i.attestation_id,
       i.policy_version_id,
       i.state,
       i.unresolved,
       i.reason,
       i.version,
       i.created_at,
       i.updated_at,
       i.completed_at,
       i.db_user
FROM orchestration.instructions i;

ALTER VIEW orchestration.instruction_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.instruction_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )


def create_guards() -> None:
    op.execute(
        """
CREATE FUNCTION orchestration.guard_instruction() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it names every column that cannot change, and because each of the
-- eight refusals has its own message and hint.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_moved boolean;
  v_advanced boolean;
  v_in_future boolean;
  v_policy_unknown boolean;
  v_rewritten boolean;
  v_adjusted boolean;
  v_ended boolean;
  v_out_of_order boolean;
  v_unversioned boolean;
  v_detail jsonb;
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT v_replica THEN
      NEW.id := coalesce(NEW.id, orchestration.uuid_v7());
      NEW.payload_hash := coalesce(
        NEW.payload_hash,
        encode(sha256('orchestration.payload.v1'::bytea || NEW.payload_salt
          || convert_to(NEW.payload::text, 'UTF8')), 'hex')
      );
      NEW.created_at := coalesce(NEW.created_at, clock_timestamp());
      NEW.updated_at := NEW.created_at;
      NEW.db_user := SESSION_USER;
      NEW.xact_id := pg_current_xact_id()::text::bigint;
    END IF;
    v_detail := jsonb_build_object('id', NEW.id, 'participant_id', NEW.participant_id,
      'idempotency_key', NEW.idempotency_key);
    IF EXISTS (SELECT FROM orchestration.instructions i WHERE i.id = NEW.id) THEN
      -- The primary key rejects the row.
      RETURN NEW;
    END IF;
    IF v_copied THEN
      -- A copied instruction may have any state, and may arrive before the rows it refers to.
      RETURN NEW;
    END IF;
    v_advanced := (NEW.state, NEW.version) IS DISTINCT FROM ('RECEIVED', 1);
    v_in_future := NOT isfinite(NEW.created_at) OR NEW.created_at > clock_timestamp();
    v_policy_unknown := NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
      SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.policy_version_id
    );
    CASE
      WHEN v_advanced THEN
        PERFORM orchestration.raise_invariant(
          'INV-INS-001', 'P7401', 'a new instruction must have state RECEIVED and version 1',
          'instructions',
          v_detail || jsonb_build_object('state', NEW.state, 'version', NEW.version),
          'Use receive_instruction, and change the state afterwards.', 'state'
        );
      WHEN v_in_future THEN
        PERFORM orchestration.raise_invariant(
          'INV-INS-002', 'P7401', 'created_at must not be in the future', 'instructions',
          v_detail || jsonb_build_object('created_at', NEW.created_at),
          'Leave created_at out: the database sets it.', 'created_at'
        );
      WHEN v_policy_unknown THEN
        -- If the version is newer than this snapshot, the gate raises 40001 instead.
        PERFORM orchestration.share_gate('policy_gate');
        PERFORM orchestration.raise_invariant(
          'INV-ATT-008', 'P7105',
          format('policy version %s does not exist', NEW.policy_version_id),
          'policy_versions', v_detail || jsonb_build_object('id', NEW.policy_version_id),
          'Use a version that accepted_policy_versions lists.', 'id'
        );
      ELSE
        NULL;
    END CASE;
    RETURN NEW;
  END IF;

  v_detail := jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state);
  v_moved := NEW.state IS DISTINCT FROM OLD.state;
  v_rewritten :=
    (NEW.id, NEW.participant_id, NEW.idempotency_key, NEW.instruction_type, NEW.end_to_end_id,
      NEW.uetr, NEW.value_date, NEW.amount_minor, NEW.currency, NEW.debtor_account,
      NEW.creditor_account, NEW.payload, NEW.payload_salt, NEW.payload_hash, NEW.attestation_id,
      NEW.policy_version_id, NEW.created_at, NEW.db_user, NEW.xact_id)
    IS DISTINCT FROM (OLD.id, OLD.participant_id, OLD.idempotency_key, OLD.instruction_type,
      OLD.end_to_end_id, OLD.uetr, OLD.value_date, OLD.amount_minor, OLD.currency,
      OLD.debtor_account, OLD.creditor_account, OLD.payload, OLD.payload_salt, OLD.payload_hash,
      OLD.attestation_id, OLD.policy_version_id, OLD.created_at, OLD.db_user, OLD.xact_id);
  v_adjusted := NOT v_moved AND (NEW.reason, NEW.version, NEW.updated_at, NEW.completed_at)
    IS DISTINCT FROM (OLD.reason, OLD.version, OLD.updated_at, OLD.completed_at);
  v_ended := v_moved AND OLD.state IN ('COMPLETED', 'FAILED');
  v_out_of_order := v_moved AND (OLD.state, NEW.state) NOT IN (
    ('RECEIVED', 'AUTHORIZED'), ('AUTHORIZED', 'EXECUTING'), ('EXECUTING', 'COMPLETED'),
    ('RECEIVED', 'FAILED'), ('AUTHORIZED', 'FAILED'), ('EXECUTING', 'FAILED')
  );
  -- In replica mode no trigger writes the history, so a change of state by hand is rejected. A
  -- copied row arrives with the version that the publisher has counted.
  v_unversioned := v_moved AND v_replica AND NEW.version <= OLD.version;
  CASE
    WHEN v_rewritten THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'the identity and content of an instruction cannot change',
        'instructions', v_detail,
        'Fail the instruction. Receive the correct content under a new idempotency key.'
      );
    WHEN v_adjusted THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401',
        'reason, version, updated_at and completed_at can change only together with state',
        'instructions', v_detail,
        'Leave them unchanged: the database sets them when the state changes.', 'version'
      );
    WHEN v_ended THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', format('state %s is final', OLD.state), 'instructions', v_detail,
        'To try again, receive a new instruction under a new idempotency key.', 'state'
      );
    WHEN v_out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-001', 'P7401',
        format('state cannot change from %s to %s', OLD.state, NEW.state), 'instructions',
        v_detail,
        'The order is RECEIVED, AUTHORIZED, EXECUTING, COMPLETED. Each but the last can become'
          ' FAILED.',
        'state'
      );
    WHEN v_unversioned THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-002', 'P7401', 'version must increase when state changes, also in replica mode',
        'instructions', v_detail || jsonb_build_object('version', NEW.version),
        'Set session_replication_role to origin: the database then sets version.', 'version'
      );
    ELSE
      NULL;
  END CASE;
  IF v_moved AND NOT v_replica THEN
    NEW.version := OLD.version + 1;
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    NEW.completed_at := CASE WHEN NEW.state IN ('COMPLETED', 'FAILED') THEN NEW.updated_at END;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_status_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_nestloop = off
AS $$
-- enable_nestloop is off because the session keeps the first plan. If a nested loop is planned for
-- one row, a later statement that changes many rows compares every pair of them.
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO orchestration.status_history (instruction_id, version, participant_id, to_state)
    SELECT a.id, a.version, a.participant_id, a.state
    FROM after a;
  ELSE
    INSERT INTO orchestration.status_history (
      instruction_id, version, participant_id, from_state, to_state, reason
    )
    SELECT a.id, a.version, a.participant_id, b.state, a.state, a.reason
    FROM after a
    JOIN before b ON b.id = a.id
    WHERE b.version <> a.version;
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_status_history OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_status_history FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_status_history() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_instruction record;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- The copied instruction may arrive later, or have a newer state. verify_instructions compares
    -- both.
    RETURN NEW;
  END IF;
  SELECT i.participant_id, i.version, i.state, i.updated_at
  INTO v_instruction
  FROM orchestration.instructions i
  WHERE i.id = NEW.instruction_id;
  IF NOT v_replica THEN
    NEW.occurred_at := coalesce(v_instruction.updated_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF v_instruction IS NULL OR EXISTS (
    SELECT FROM orchestration.status_history h
    WHERE h.instruction_id = NEW.instruction_id AND h.version = NEW.version
  ) THEN
    -- The foreign key or the primary key rejects the row.
    RETURN NEW;
  END IF;
  IF (NEW.participant_id, NEW.version, NEW.to_state) IS DISTINCT FROM
    (v_instruction.participant_id, v_instruction.version, v_instruction.state) THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-004', 'P0001',
      'version, to_state or participant_id differs from that of the instruction', 'status_history',
      jsonb_build_object('instruction_id', NEW.instruction_id, 'version', NEW.version,
        'to_state', NEW.to_state),
      'Do not write status_history: the database does, with every change of state.', 'version'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_status_history OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_status_history FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.instructions
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_instruction();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER kill_switch_insert AFTER INSERT ON orchestration.instructions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST', 'EACH');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER kill_switch_insert
"""
    )
    op.execute(
        """
CREATE TRIGGER kill_switch_update AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.state IN ('AUTHORIZED', 'EXECUTING') AND NEW.state <> OLD.state)
EXECUTE FUNCTION orchestration.block_execution_if_killed('EXECUTION', 'EACH');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER kill_switch_update
"""
    )
    op.execute(
        """
CREATE TRIGGER history_insert AFTER INSERT ON orchestration.instructions
REFERENCING NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history()
"""
    )
    op.execute(
        """
CREATE TRIGGER history_update AFTER UPDATE ON orchestration.instructions
REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_status_history()
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.instructions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001', 'id', 'state');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.instructions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-INS-002', 'P0001');
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.status_history
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_status_history();
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.status_history
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'instruction_id', 'version');
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.status_history
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER no_truncate
"""
    )


def create_functions() -> None:
    op.execute(
        """
-- Must equal ck_instructions_payload and ck_payment_outbox_items_payload. The functions check a
-- payload before they store it, because the error of a CHECK constraint would print it.
CREATE FUNCTION orchestration.is_storable_payload(p_payload jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN octet_length(p_payload::text) <= 1000000
  AND jsonb_typeof(p_payload) = 'object'
  AND (octet_length(p_payload::text) <= 1000
    OR NOT jsonb_path_exists(p_payload, 'strict $.**{501}')
    AND NOT jsonb_path_exists(p_payload, 'strict $.** ? (@ >= $n || @ <= -$n)',
      ('{"n": 1' || repeat('0', 1234) || '}')::jsonb));

ALTER FUNCTION orchestration.is_storable_payload OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.is_storable_payload FROM PUBLIC
"""
    )
    op.execute(
        """
-- An element of receive_instruction.
CREATE TYPE orchestration.new_instruction AS (
  participant_id text,
  idempotency_key text,
  instruction_type text,
  end_to_end_id text,
  uetr uuid,
  value_date date,
  amount_minor bigint,
  currency text,
  debtor_account text,
  creditor_account text,
  payload jsonb,
  attestation_id uuid,
  policy_version_id text
);

ALTER TYPE orchestration.new_instruction OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_instruction FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.receive_instruction(p_instructions jsonb)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- The function is long because it checks every element of the batch before it takes a lock.
DECLARE
  v_instructions orchestration.new_instruction[];
  v_bad record;
  v_other record;
  v_new uuid[];
  v_new_ids jsonb;
  v_replayed boolean[];
BEGIN
  IF jsonb_typeof(p_instructions) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_instructions) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_instructions must be an array of 0 to 10,000 objects',
      'instructions', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_instructions) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_instructions must be at most 64 MiB',
      'instructions', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_instructions := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_instruction, p_instructions) AS r
    );
    SELECT t.ordinality, t.missing, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN r.participant_id IS NULL THEN 'participant_id'
               WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
               WHEN r.instruction_type IS NULL THEN 'instruction_type'
               WHEN r.end_to_end_id IS NULL THEN 'end_to_end_id'
               WHEN r.amount_minor IS NULL THEN 'amount_minor'
               WHEN r.currency IS NULL THEN 'currency'
               WHEN r.debtor_account IS NULL THEN 'debtor_account'
               WHEN r.creditor_account IS NULL THEN 'creditor_account'
               WHEN r.payload IS NULL THEN 'payload'
               WHEN r.attestation_id IS NULL THEN 'attestation_id'
               WHEN r.policy_version_id IS NULL THEN 'policy_version_id'
             END AS missing,
             CASE
               WHEN octet_length(r.participant_id) NOT BETWEEN 1 AND 1000 THEN 'participant_id'
               WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
               WHEN octet_length(r.instruction_type) NOT BETWEEN 1 AND 1000 THEN 'instruction_type'
               WHEN octet_length(r.end_to_end_id) NOT BETWEEN 1 AND 1000 THEN 'end_to_end_id'
               WHEN extract(year FROM r.value_date) NOT BETWEEN 1 AND 9998 THEN 'value_date'
               WHEN r.amount_minor <= 0 THEN 'amount_minor'
               WHEN octet_length(r.currency) <> 3 OR r.currency !~ '^[A-Z]*$' THEN 'currency'
               WHEN octet_length(r.debtor_account) NOT BETWEEN 1 AND 1000 THEN 'debtor_account'
               WHEN octet_length(r.creditor_account) NOT BETWEEN 1 AND 1000 THEN 'creditor_account'
               WHEN octet_length(r.policy_version_id) > 1000 THEN 'policy_version_id'
               WHEN NOT orchestration.is_storable_payload(r.payload) THEN 'payload'
             END AS malformed
      FROM unnest(v_instructions) WITH ORDINALITY AS r
    ) t
    WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('instructions', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'instructions', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Insert in the order of the keys, so that batches that share keys wait for each other without a
  -- deadlock.
  WITH entered AS (
  INSERT INTO orchestration.instructions (
    participant_id, idempotency_key, instruction_type, end_to_end_id, uetr, value_date,
    amount_minor, currency, debtor_account, creditor_account, payload, attestation_id,
    policy_version_id
  )
  SELECT r.participant_id, r.idempotency_key, r.instruction_type, r.end_to_end_id, r.uetr,
         r.value_date, r.amount_minor, r.currency, r.debtor_account, r.creditor_account, r.payload,
         r.attestation_id, r.policy_version_id
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  ORDER BY r.participant_id, r.idempotency_key, r.ordinality
  ON CONFLICT (participant_id, idempotency_key) DO NOTHING
  RETURNING id
  )
  SELECT array_agg(e.id) INTO v_new FROM entered e;

  -- The attestation and the policy version were checked with the first request. All other columns
  -- are the content, which a replay must repeat.
  SELECT i.id, i.participant_id, i.idempotency_key
  INTO v_other
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.instructions i
    WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
    OFFSET 0
  ) i
  WHERE (i.instruction_type, i.end_to_end_id, i.uetr, i.value_date, i.amount_minor, i.currency,
      i.debtor_account, i.creditor_account, i.payload::text)
    IS DISTINCT FROM (r.instruction_type, r.end_to_end_id, r.uetr, r.value_date, r.amount_minor,
      r.currency, r.debtor_account, r.creditor_account, r.payload::text)
  ORDER BY r.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-008', 'P7402', 'the idempotency key was used with different content', 'instructions',
      jsonb_build_object('id', v_other.id, 'participant_id', v_other.participant_id,
        'idempotency_key', v_other.idempotency_key),
      'Use a new idempotency key for new content.', 'idempotency_key'
    );
  END IF;
  IF cardinality(v_new) < jsonb_array_length(p_instructions) THEN
    -- Some elements are new and some are not. If a key occurs twice, its first element is new.
    SELECT jsonb_object_agg(n.id, NULL) INTO v_new_ids FROM unnest(v_new) AS n (id);
    SELECT array_agg(f.replayed ORDER BY f.ordinality)
    INTO v_replayed
    FROM (
      SELECT r.ordinality,
             NOT v_new_ids ? i.id::text
               OR row_number() OVER (PARTITION BY i.id ORDER BY r.ordinality) > 1 AS replayed
      FROM unnest(v_instructions) WITH ORDINALITY AS r
      CROSS JOIN LATERAL (
        SELECT i.id
        FROM orchestration.instructions i
        WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
        OFFSET 0
      ) i
    ) f;
  END IF;
  RETURN QUERY
  SELECT i.*, coalesce(v_replayed[r.ordinality], v_new IS NULL)
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.instructions i
    WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
    OFFSET 0
  ) i
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.receive_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.receive_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.receive_instruction TO symphony_ingest
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.lock_instruction(
  p_id uuid,
  p_version integer,
  p_state text,
  p_reason text
)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Locks and returns the instruction if its version is p_version and its state is not p_state yet.
-- FOR UPDATE takes the strongest lock at once. If the UPDATE had to strengthen a weaker lock, it
-- would deadlock with a transaction that enqueues an item and then starts the same instruction.
-- If this login has already made the same transition from p_version, the function returns the row
-- that the transition left, with replayed set. The caller then changes nothing.
-- The function is slightly over 70 lines because the replay sets each column of the result that has
-- changed since.
DECLARE
  v_instruction orchestration.instruction_result;
  v_done orchestration.status_history;
BEGIN
  -- A transaction that enqueues an item of this instruction holds a gate while it waits for this
  -- lock, so the lock must not stay with a client that has stopped.
  PERFORM orchestration.bound_idle_time();
  SELECT i.*, false INTO v_instruction
  FROM orchestration.instructions i
  WHERE i.id = p_id
  FOR UPDATE;
  IF v_instruction.id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the instruction does not exist', 'instructions',
      jsonb_build_object('id', p_id), 'Check the id.', 'id'
    );
  END IF;
  IF v_instruction.version > p_version THEN
    -- The cast to bigint avoids an overflow if p_version is the largest integer.
    SELECT h.* INTO v_done
    FROM orchestration.status_history h
    WHERE h.instruction_id = p_id
      AND h.version = p_version::bigint + 1
      AND h.to_state = p_state
      AND h.reason IS NOT DISTINCT FROM p_reason
      AND h.db_user = SESSION_USER;
    IF FOUND THEN
      -- The row may have changed again since. Returning its current version would stop a caller
      -- that repeats several transitions, each with the version that the one before returned.
      v_instruction.state := v_done.to_state;
      v_instruction.open := v_done.to_state IN ('AUTHORIZED', 'EXECUTING');
      v_instruction.reason := v_done.reason;
      v_instruction.version := v_done.version;
      v_instruction.updated_at := v_done.occurred_at;
      v_instruction.completed_at :=
        CASE WHEN v_done.to_state IN ('COMPLETED', 'FAILED') THEN v_done.occurred_at END;
      v_instruction.replayed := true;
      RETURN NEXT v_instruction;
      RETURN;
    END IF;
  END IF;
  IF v_instruction.version IS DISTINCT FROM p_version THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-009', 'P7403',
      format('p_version must be %s, the current version of the instruction', v_instruction.version),
      'instructions',
      jsonb_build_object('id', p_id, 'version', v_instruction.version, 'given', p_version,
        'state', v_instruction.state),
      'Read the instruction again, and check that the transition is still right.', 'version'
    );
  END IF;
  IF v_instruction.state = p_state THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-001', 'P7401', format('the instruction is already %s', p_state), 'instructions',
      jsonb_build_object('id', p_id, 'from', p_state, 'to', p_state),
      'Do nothing: another call has made this transition.', 'state'
    );
  END IF;
  RETURN NEXT v_instruction;
END
$$;

ALTER FUNCTION orchestration.lock_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_instruction FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.authorize_instruction(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
  v_cert text;
  v_token text;
BEGIN
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.share_gate('policy_gate');
  PERFORM orchestration.share_gate('revocation_gate');
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, 'AUTHORIZED', NULL) l;
  IF v_instruction.replayed THEN
    -- The first call has checked the conditions below.
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  IF v_instruction.state = 'RECEIVED' THEN
    IF v_instruction.db_user = SESSION_USER THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-007', 'P7405', 'the login that received the instruction cannot authorize it',
        'instructions', jsonb_build_object('id', p_id, 'db_user', v_instruction.db_user),
        'Authorize it with another login.', 'db_user'
      );
    END IF;
    IF NOT EXISTS (
      SELECT FROM orchestration.accepted_policy_versions a
      WHERE a.id = v_instruction.policy_version_id
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7105',
        format('policy version %s is no longer accepted', v_instruction.policy_version_id),
        'policy_versions',
        jsonb_build_object('id', v_instruction.policy_version_id, 'instruction_id', p_id),
        'Fail the instruction. Receive it again under a version that accepted_policy_versions lists.',
        'id'
      );
    END IF;
    SELECT a.client_cert_fingerprint_sha256, a.token_hash
    INTO v_cert, v_token
    FROM orchestration.ingress_attestations a
    WHERE a.id = v_instruction.attestation_id;
    IF EXISTS (
      SELECT FROM orchestration.revoked_client_certs_in_force c
      WHERE c.cert_fingerprint_sha256 = v_cert
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7202', 'the client certificate of the attestation is revoked',
        'revoked_client_certs',
        jsonb_build_object('credential', 'CLIENT_CERT', 'instruction_id', p_id),
        'Fail the instruction. Attest the request again with another certificate.',
        'cert_fingerprint_sha256'
      );
    END IF;
    IF EXISTS (
      SELECT FROM orchestration.revoked_tokens_in_force t WHERE t.token_hash = v_token
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7202', 'the token of the attestation is revoked', 'revoked_tokens',
        jsonb_build_object('credential', 'TOKEN', 'instruction_id', p_id),
        'Fail the instruction. Attest the request again with another token.', 'token_hash'
      );
    END IF;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i SET state = 'AUTHORIZED' WHERE i.id = p_id
  RETURNING i.*, false;
END
$$;

ALTER FUNCTION orchestration.authorize_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.authorize_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.authorize_instruction TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.start_execution(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
BEGIN
  PERFORM orchestration.share_gate('kill_switch_gate');
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, 'EXECUTING', NULL) l;
  IF v_instruction.replayed THEN
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i SET state = 'EXECUTING' WHERE i.id = p_id
  RETURNING i.*, false;
END
$$;

ALTER FUNCTION orchestration.start_execution OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.start_execution FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.start_execution TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.end_instruction(
  p_id uuid,
  p_version integer,
  p_state text,
  p_reason text
) RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
BEGIN
  IF p_state = 'FAILED' AND coalesce(p_reason, '') = '' THEN
    -- Checked here because the error of the CHECK constraint would print the whole row, with its
    -- accounts and payload.
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'instructions',
      jsonb_build_object('id', p_id), 'Pass the reason for the failure in p_reason.', 'reason'
    );
  END IF;
  PERFORM orchestration.refuse_long_texts('instructions', ARRAY['reason'], ARRAY[p_reason], 4000);
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, p_state, p_reason) l;
  IF v_instruction.replayed THEN
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i
  SET state = p_state, reason = p_reason
  WHERE i.id = p_id
  RETURNING i.*, false;
EXCEPTION
  -- The foreign key of payment_outbox_pending rejects the change if an item is pending, even if
  -- another transaction enqueues it at the same time.
  WHEN foreign_key_violation THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404', 'the instruction still has a pending item', 'instructions',
      jsonb_build_object('id', p_id, 'to', p_state),
      'Wait until its items are DISPATCHED or FAILED. payment_outbox_status lists them.',
      'state'
    );
END
$$;

ALTER FUNCTION orchestration.end_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.end_instruction FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.complete_instruction(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'COMPLETED', NULL) e;
END
$$;

ALTER FUNCTION orchestration.complete_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.complete_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.complete_instruction TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.fail_instruction(p_id uuid, p_version integer, p_reason text)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'FAILED', p_reason) e;
END
$$;

ALTER FUNCTION orchestration.fail_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fail_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.fail_instruction TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.verify_instructions()
RETURNS TABLE (finding text, instruction_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  SELECT 'HISTORY: status_history does not lead to the current state of the instruction',
         i.id, i.participant_id,
         jsonb_build_object('version', i.version, 'state', i.state, 'rows', h.rows,
           'last', h.last)
  FROM orchestration.instructions i
  CROSS JOIN LATERAL (
    SELECT count(*) AS rows,
           min(h.version) AS first,
           max(h.version) AS newest,
           (array_agg(h.to_state ORDER BY h.version DESC))[1] AS last,
           (array_agg(h.reason ORDER BY h.version DESC))[1] AS reason,
           (array_agg(h.db_user ORDER BY h.version))[1] AS received_by,
           count(*) FILTER (WHERE h.version > 1 AND h.from_state IS DISTINCT FROM h.before)
             AS leaps
    FROM (
      SELECT h.*, lag(h.to_state) OVER (ORDER BY h.version) AS before
      FROM orchestration.status_history h
      WHERE h.instruction_id = i.id
    ) h
  ) h
  WHERE (h.rows, h.first, h.newest, h.last, h.reason, h.received_by, h.leaps)
    IS DISTINCT FROM (i.version::bigint, 1, i.version, i.state, i.reason, i.db_user, 0::bigint)
  UNION ALL
  SELECT 'ORPHAN: the instruction of the status_history row does not exist',
         h.instruction_id, h.participant_id,
         jsonb_build_object('version', h.version, 'to_state', h.to_state)
  FROM orchestration.status_history h
  WHERE NOT EXISTS (
    SELECT FROM orchestration.instructions i
    WHERE (i.id, i.participant_id) = (h.instruction_id, h.participant_id))
  UNION ALL
  SELECT 'ORPHAN: the attestation of the instruction does not exist', i.id, i.participant_id,
         jsonb_build_object('attestation_id', i.attestation_id)
  FROM orchestration.instructions i
  WHERE NOT EXISTS (
    SELECT FROM orchestration.ingress_attestations a WHERE a.id = i.attestation_id)
  UNION ALL
  SELECT 'POLICY: the instruction and its attestation have different policy versions',
         i.id, i.participant_id,
         jsonb_build_object('attestation_id', i.attestation_id,
           'policy_version_id', i.policy_version_id, 'attested_under', a.policy_version_id)
  FROM orchestration.instructions i
  JOIN orchestration.ingress_attestations a ON a.id = i.attestation_id
  WHERE a.policy_version_id <> i.policy_version_id
  UNION ALL
  SELECT 'ORPHAN: the policy version of the instruction does not exist', i.id, i.participant_id,
         jsonb_build_object('policy_version_id', i.policy_version_id)
  FROM orchestration.instructions i
  WHERE NOT EXISTS (
    SELECT FROM orchestration.policy_versions p WHERE p.id = i.policy_version_id)
$$;

ALTER FUNCTION orchestration.verify_instructions OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_instructions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_instructions TO symphony_control, symphony_auditor
"""
    )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.instructions) THEN
    RAISE EXCEPTION 'instructions contains evidence; to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.verify_instructions")
    op.execute("DROP FUNCTION orchestration.fail_instruction")
    op.execute("DROP FUNCTION orchestration.complete_instruction")
    op.execute("DROP FUNCTION orchestration.end_instruction")
    op.execute("DROP FUNCTION orchestration.start_execution")
    op.execute("DROP FUNCTION orchestration.authorize_instruction")
    op.execute("DROP FUNCTION orchestration.lock_instruction")
    op.execute("DROP FUNCTION orchestration.receive_instruction")
    op.execute("DROP TYPE orchestration.new_instruction")
    op.execute("DROP FUNCTION orchestration.is_storable_payload")
    op.execute("DROP VIEW orchestration.instruction_status")
    op.execute("DROP VIEW orchestration.instruction_result")
    op.drop_table("status_history", schema="orchestration")
    op.drop_table("instructions", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_status_history")
    op.execute("DROP FUNCTION orchestration.record_status_history")
    op.execute("DROP FUNCTION orchestration.guard_instruction")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0006'")
    op.execute("RESET ROLE")
