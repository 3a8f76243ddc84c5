"""Create the ingress attestations with one hash chain per caller, and the events of executions.

Serves: INV-ATT-001 to INV-ATT-011, INV-API-001, INV-API-002.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.create_table(
        "ingress_attestation_heads",
        sa.Column("caller_identity", sa.Text(), nullable=False),
        sa.Column("chain_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("record_hash", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint(
            "octet_length(caller_identity) BETWEEN 1 AND 1000",
            name=op.f("ck_ingress_attestation_heads_caller_identity"),
        ),
        sa.CheckConstraint("chain_seq >= 0", name=op.f("ck_ingress_attestation_heads_chain_seq")),
        sa.PrimaryKeyConstraint("caller_identity", name=op.f("pk_ingress_attestation_heads")),
        schema="orchestration",
        postgresql_with={"fillfactor": "50"},
    )
    op.execute("GRANT SELECT ON orchestration.ingress_attestation_heads TO symphony_auditor")
    op.create_table(
        "ingress_attestations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("caller_identity", sa.Text(), nullable=False),
        sa.Column("chain_seq", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("signature_hash", sa.Text(), nullable=True),
        sa.Column("client_cert_fingerprint_sha256", sa.Text(), nullable=True),
        sa.Column("token_hash", sa.Text(), nullable=True),
        sa.Column("policy_version_id", sa.Text(), nullable=False),
        sa.Column(
            "execution_started", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
        sa.Column(
            "execution_completed", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
        sa.Column("terminal_status", sa.Text(), nullable=True),
        sa.Column("attested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("record_hash", sa.Text(), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "octet_length(caller_identity) BETWEEN 1 AND 1000",
            name=op.f("ck_ingress_attestations_caller_identity"),
        ),
        sa.CheckConstraint("chain_seq >= 1", name=op.f("ck_ingress_attestations_chain_seq")),
        sa.CheckConstraint(
            "octet_length(idempotency_key) BETWEEN 1 AND 1000",
            name=op.f("ck_ingress_attestations_idempotency_key"),
        ),
        sa.CheckConstraint(
            "octet_length(payload_hash) = 64 AND payload_hash ~ '^[0-9a-f]*$'",
            name=op.f("ck_ingress_attestations_payload_hash"),
        ),
        sa.CheckConstraint(
            "octet_length(signature_hash) = 64 AND signature_hash ~ '^[0-9a-f]*$'",
            name=op.f("ck_ingress_attestations_signature_hash"),
        ),
        sa.CheckConstraint(
            "octet_length(client_cert_fingerprint_sha256) = 64"
            " AND client_cert_fingerprint_sha256 ~ '^[0-9a-f]*$'",
            name=op.f("ck_ingress_attestations_client_cert_fingerprint_sha256"),
        ),
        sa.CheckConstraint(
            "octet_length(token_hash) = 64 AND token_hash ~ '^[0-9a-f]*$'",
            name=op.f("ck_ingress_attestations_token_hash"),
        ),
        sa.CheckConstraint(
            "octet_length(record_hash) = 64 AND record_hash ~ '^[0-9a-f]*$'",
            name=op.f("ck_ingress_attestations_record_hash"),
        ),
        sa.CheckConstraint(
            "(chain_seq = 1) = (prev_hash = '')", name=op.f("ck_ingress_attestations_prev_hash")
        ),
        sa.CheckConstraint(
            "execution_started OR NOT execution_completed",
            name=op.f("ck_ingress_attestations_execution"),
        ),
        sa.CheckConstraint(
            "execution_completed = (terminal_status IS NOT NULL)"
            " AND terminal_status IN ('SUCCESS', 'FAILED', 'REPAIRED')",
            name=op.f("ck_ingress_attestations_terminal_status"),
        ),
        sa.CheckConstraint(
            "extract(year FROM attested_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_ingress_attestations_years"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ingress_attestations")),
        sa.UniqueConstraint(
            "caller_identity",
            "chain_seq",
            name=op.f("uq_ingress_attestations_caller_identity_chain_seq"),
        ),
        sa.UniqueConstraint(
            "caller_identity",
            "prev_hash",
            name=op.f("uq_ingress_attestations_caller_identity_prev_hash"),
        ),
        sa.UniqueConstraint(
            "caller_identity",
            "idempotency_key",
            name=op.f("uq_ingress_attestations_caller_identity_idempotency_key"),
        ),
        sa.UniqueConstraint(
            "id", "policy_version_id", name=op.f("uq_ingress_attestations_id_policy_version_id")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_ingress_attestations_xact_id"),
        "ingress_attestations",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.ingress_attestations
TO symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.create_table(
        "ingress_attestation_events",
        sa.Column("attestation_id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("caller_identity", sa.Text(), nullable=False),
        sa.Column("terminal_status", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "event IN ('EXECUTION_STARTED', 'EXECUTION_COMPLETED')",
            name=op.f("ck_ingress_attestation_events_event"),
        ),
        sa.CheckConstraint(
            "(event = 'EXECUTION_COMPLETED') = (terminal_status IS NOT NULL)"
            " AND terminal_status IN ('SUCCESS', 'FAILED', 'REPAIRED')",
            name=op.f("ck_ingress_attestation_events_terminal_status"),
        ),
        sa.CheckConstraint(
            "octet_length(recorded_by) BETWEEN 1 AND 1000",
            name=op.f("ck_ingress_attestation_events_recorded_by"),
        ),
        sa.CheckConstraint(
            "extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_ingress_attestation_events_years"),
        ),
        sa.ForeignKeyConstraint(
            ["attestation_id"],
            ["orchestration.ingress_attestations.id"],
            name=op.f("fk_ingress_attestation_events_attestation_id"),
        ),
        sa.PrimaryKeyConstraint(
            "attestation_id", "event", name=op.f("pk_ingress_attestation_events")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_ingress_attestation_events_xact_id"),
        "ingress_attestation_events",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.ingress_attestation_events
TO symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.ingress_attestation_result
WITH (security_invoker = true)
AS
SELECT i.*, false AS replayed
FROM orchestration.ingress_attestations i;

ALTER VIEW orchestration.ingress_attestation_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.ingress_attestation_event_result
WITH (security_invoker = true)
AS
SELECT e.*, false AS replayed
FROM orchestration.ingress_attestation_events e;

ALTER VIEW orchestration.ingress_attestation_event_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.ingress_attestation_status
WITH (security_barrier = true)
AS
SELECT a.id AS attestation_id,
       a.caller_identity,
       a.chain_seq,
       a.idempotency_key,
       a.policy_version_id,
       a.attested_at,
       a.execution_started OR s.event IS NOT NULL AS execution_started,
       s.occurred_at AS execution_started_at,
       a.execution_completed OR c.event IS NOT NULL AS execution_completed,
       c.occurred_at AS execution_completed_at,
       coalesce(a.terminal_status, c.terminal_status) AS terminal_status
FROM orchestration.ingress_attestations a
LEFT JOIN orchestration.ingress_attestation_events s
  ON s.attestation_id = a.id AND s.event = 'EXECUTION_STARTED'
LEFT JOIN orchestration.ingress_attestation_events c
  ON c.attestation_id = a.id AND c.event = 'EXECUTION_COMPLETED';

ALTER VIEW orchestration.ingress_attestation_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.ingress_attestation_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )

    op.execute(
        """
-- Format orchestration.attestation.v1. It must never change. Each field is its length in bytes, a
-- colon, its UTF-8 bytes and a comma. A null is a hyphen and a comma. Times are microseconds since
-- 1970.
CREATE FUNCTION orchestration.attestation_record_hash(p orchestration.ingress_attestations)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(
  '28:orchestration.attestation.v1,'
  || '36:' || (p).id::text || ','
  || octet_length((p).caller_identity) || ':' || (p).caller_identity || ','
  || length((p).chain_seq::text) || ':' || (p).chain_seq || ','
  || octet_length((p).idempotency_key) || ':' || (p).idempotency_key || ','
  || '64:' || (p).payload_hash || ','
  || coalesce('64:' || (p).signature_hash, '-') || ','
  || coalesce('64:' || (p).client_cert_fingerprint_sha256, '-') || ','
  || coalesce('64:' || (p).token_hash, '-') || ','
  || octet_length((p).policy_version_id) || ':' || (p).policy_version_id || ','
  || CASE WHEN (p).execution_started THEN '1:t,' ELSE '1:f,' END
  || CASE WHEN (p).execution_completed THEN '1:t,' ELSE '1:f,' END
  || coalesce(octet_length((p).terminal_status) || ':' || (p).terminal_status, '-') || ','
  || length(((extract(epoch FROM (p).attested_at) * 1000000)::bigint)::text) || ':'
  || (extract(epoch FROM (p).attested_at) * 1000000)::bigint || ','
  || octet_length((p).db_user) || ':' || (p).db_user || ','
  || octet_length((p).prev_hash) || ':' || (p).prev_hash || ',',
  'UTF8'
)), 'hex');

ALTER FUNCTION orchestration.attestation_record_hash OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.attestation_record_hash FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_attestation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its checks raises its own error, and because a call of another
-- function costs a noticeable part of an insert.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_detail jsonb := jsonb_build_object(
    'caller_identity', NEW.caller_identity, 'idempotency_key', NEW.idempotency_key);
  v_head_seq bigint;
  v_last_seq bigint;
  v_last_hash text;
  v_last_at timestamptz;
  v_hash text;
BEGIN
  IF NEW.id IS NOT NULL THEN
    IF EXISTS (SELECT FROM orchestration.ingress_attestations a WHERE a.id = NEW.id) THEN
      -- The primary key rejects this row. The columns that the caller left out are filled with values
      -- that no chain contains: NOT NULL must not reject the row first, and ON CONFLICT must not find
      -- another record by them.
      IF NOT v_replica THEN
        NEW.chain_seq := coalesce(
          NEW.chain_seq, CASE WHEN NEW.prev_hash = '' THEN 1 ELSE 9223372036854775807 END);
        NEW.prev_hash := coalesce(
          NEW.prev_hash, CASE WHEN NEW.chain_seq = 1 THEN '' ELSE NEW.id::text END);
        NEW.attested_at := coalesce(NEW.attested_at, clock_timestamp());
        NEW.record_hash := coalesce(NEW.record_hash, repeat('0', 64));
        NEW.db_user := SESSION_USER;
        NEW.xact_id := pg_current_xact_id()::text::bigint;
      END IF;
      RETURN NEW;
    END IF;
  ELSIF NOT v_replica THEN
    NEW.id := orchestration.uuid_v7();
  END IF;
  IF NEW.execution_completed AND NOT NEW.execution_started THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-002', 'P7301', 'execution_completed requires execution_started',
      'ingress_attestations', v_detail,
      'Set execution_started to true as well.', 'execution_completed'
    );
  END IF;
  IF NEW.execution_completed <> (NEW.terminal_status IS NOT NULL) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-003', 'P7301',
      'terminal_status must be set if and only if execution_completed is true',
      'ingress_attestations', v_detail,
      'Set terminal_status together with execution_completed.', 'terminal_status'
    );
  END IF;
  IF NOT v_copied AND NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.policy_version_id
  ) THEN
    -- If the version is newer than the snapshot, sharing the gate fails with 40001.
    PERFORM orchestration.share_gate('policy_gate');
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105', format('policy version %s does not exist', NEW.policy_version_id),
      'policy_versions', v_detail || jsonb_build_object('id', NEW.policy_version_id),
      'Use a version that accepted_policy_versions lists.', 'id'
    );
  END IF;

  -- The head is locked first, and the newest record is read in a later statement. A transaction that
  -- waited for the lock therefore reads the record that the other one wrote. With an older snapshot,
  -- locking a head that has moved fails with 40001.
  SELECT h.chain_seq INTO v_head_seq
  FROM orchestration.ingress_attestation_heads h
  WHERE h.caller_identity = NEW.caller_identity AND NOT v_copied
  FOR UPDATE;
  IF NOT FOUND AND NOT v_replica AND NEW.caller_identity <> '' THEN
    INSERT INTO orchestration.ingress_attestation_heads (caller_identity)
    VALUES (NEW.caller_identity)
    ON CONFLICT DO NOTHING;
    SELECT h.chain_seq INTO v_head_seq
    FROM orchestration.ingress_attestation_heads h
    WHERE h.caller_identity = NEW.caller_identity
    FOR UPDATE;
  END IF;
  SELECT a.chain_seq, a.record_hash, a.attested_at INTO v_last_seq, v_last_hash, v_last_at
  FROM orchestration.ingress_attestations a
  WHERE a.caller_identity = NEW.caller_identity
  ORDER BY a.chain_seq DESC
  LIMIT 1;
  v_last_seq := coalesce(v_last_seq, 0);
  v_last_hash := coalesce(v_last_hash, '');
  IF v_head_seq > v_last_seq THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-005', 'P7302', 'the newest records of the caller''s chain are missing',
      'ingress_attestations',
      v_detail || jsonb_build_object('head', v_head_seq, 'chain_seq', v_last_seq),
      'Run verify_attestation_chain for this caller.', 'chain_seq'
    );
  END IF;

  IF NOT v_replica THEN
    NEW.chain_seq := coalesce(NEW.chain_seq, v_last_seq + 1);
    NEW.prev_hash := coalesce(NEW.prev_hash, v_last_hash);
    -- The clock may have been set back since the caller's newest attestation.
    NEW.attested_at := coalesce(NEW.attested_at, greatest(clock_timestamp(), v_last_at));
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF NOT isfinite(NEW.attested_at)
    OR NEW.attested_at > greatest(clock_timestamp(), v_last_at) AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-011', 'P7301', 'attested_at must not be in the future', 'ingress_attestations',
      v_detail || jsonb_build_object('attested_at', NEW.attested_at),
      'Leave attested_at out: the database sets it.', 'attested_at'
    );
  END IF;
  IF NOT v_copied
    AND (NEW.chain_seq, NEW.prev_hash) IS DISTINCT FROM (v_last_seq + 1, v_last_hash) THEN
    IF v_last_seq = 0 THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-004', 'P7302',
        'the first record of a chain must have chain_seq 1 and an empty prev_hash',
        'ingress_attestations', v_detail || jsonb_build_object('chain_seq', NEW.chain_seq),
        'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
      );
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-005', 'P7302', 'chain_seq and prev_hash must continue the caller''s chain',
      'ingress_attestations',
      v_detail || jsonb_build_object('chain_seq', NEW.chain_seq, 'expected', v_last_seq + 1),
      'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
    );
  END IF;
  IF NEW.attested_at < v_last_at AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-007', 'P7301', 'attested_at must not be before the caller''s newest attestation',
      'ingress_attestations',
      v_detail || jsonb_build_object('attested_at', NEW.attested_at, 'newest', v_last_at),
      'Import a caller''s attestations in the order of attested_at, or leave attested_at out.',
      'attested_at'
    );
  END IF;
  v_hash := orchestration.attestation_record_hash(NEW);
  IF NOT v_replica THEN
    NEW.record_hash := coalesce(NEW.record_hash, v_hash);
  END IF;
  IF NEW.record_hash <> v_hash THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-006', 'P7302', 'record_hash is not the hash of the record',
      'ingress_attestations', v_detail || jsonb_build_object('chain_seq', NEW.chain_seq),
      'Leave record_hash out: the database computes it.', 'record_hash'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attestation OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attestation FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.advance_attestation_heads() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- Update each caller's head once per statement; once per row would leave a dead tuple per record.
BEGIN
  UPDATE orchestration.ingress_attestation_heads h
  SET chain_seq = last.chain_seq, record_hash = last.record_hash
  FROM (
    SELECT DISTINCT ON (i.caller_identity) i.caller_identity, i.chain_seq, i.record_hash
    FROM inserted i
    ORDER BY i.caller_identity, i.chain_seq DESC
  ) last
  WHERE h.caller_identity = last.caller_identity;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_attestation_heads OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_attestation_heads FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_attestation_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its five checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_attestation orchestration.ingress_attestations;
  v_detail jsonb := jsonb_build_object(
    'attestation_id', NEW.attestation_id, 'event', NEW.event);
BEGIN
  SELECT a.* INTO v_attestation
  FROM orchestration.ingress_attestations a
  WHERE a.id = NEW.attestation_id;
  IF NOT v_replica THEN
    NEW.caller_identity := coalesce(NEW.caller_identity, v_attestation.caller_identity, '');
    NEW.occurred_at := coalesce(NEW.occurred_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF (NEW.event = 'EXECUTION_COMPLETED') <> (NEW.terminal_status IS NOT NULL) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-003', 'P7301',
      'terminal_status must be set if and only if event is EXECUTION_COMPLETED',
      'ingress_attestation_events', v_detail,
      'Pass terminal_status with EXECUTION_COMPLETED only.', 'terminal_status'
    );
  END IF;
  IF v_attestation.id IS NULL OR EXISTS (
    SELECT FROM orchestration.ingress_attestation_events e
    WHERE e.attestation_id = NEW.attestation_id AND e.event = NEW.event
  ) THEN
    -- The foreign key or the primary key rejects this row.
    RETURN NEW;
  END IF;
  IF NEW.caller_identity <> v_attestation.caller_identity THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'caller_identity must be that of the attestation',
      'ingress_attestation_events', v_detail,
      'Leave caller_identity out: the database sets it.', 'caller_identity'
    );
  END IF;
  IF NEW.event = 'EXECUTION_STARTED' AND v_attestation.execution_started
    OR NEW.event = 'EXECUTION_COMPLETED' AND v_attestation.execution_completed THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'the attestation itself already contains this event',
      'ingress_attestation_events', v_detail,
      'ingress_attestation_status shows the state of the attestation.', 'event'
    );
  END IF;
  IF NOT v_copied
    AND NEW.event = 'EXECUTION_COMPLETED'
    AND NOT v_attestation.execution_started
    AND NOT EXISTS (
      SELECT FROM orchestration.ingress_attestation_events e
      WHERE e.attestation_id = NEW.attestation_id AND e.event = 'EXECUTION_STARTED'
    ) THEN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
      -- The snapshot does not show a start that was recorded after it, but the primary key does:
      -- inserting a start fails with 40001 if there is one. Otherwise the error below undoes it.
      INSERT INTO orchestration.ingress_attestation_events
        (attestation_id, event, caller_identity, occurred_at, db_user, xact_id)
      VALUES (NEW.attestation_id, 'EXECUTION_STARTED', v_attestation.caller_identity,
        clock_timestamp(), SESSION_USER, pg_current_xact_id()::text::bigint)
      ON CONFLICT DO NOTHING;
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-002', 'P7301', 'EXECUTION_COMPLETED requires EXECUTION_STARTED',
      'ingress_attestation_events', v_detail, 'Record EXECUTION_STARTED first.', 'event'
    );
  END IF;
  IF NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-011', 'P7301', 'occurred_at must not be in the future', 'ingress_attestation_events',
      v_detail || jsonb_build_object('occurred_at', NEW.occurred_at),
      'Leave occurred_at out: the database sets it.', 'occurred_at'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attestation_event OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attestation_event FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestations
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation();
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER heads AFTER INSERT ON orchestration.ingress_attestations
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_attestation_heads()
"""
    )
    op.execute(
        """
CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.ingress_attestations
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER kill_switch
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.ingress_attestations
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-001', 'P0001', 'id', 'caller_identity', 'chain_seq');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestations
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestation_events
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation_event();
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.ingress_attestation_events
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-001', 'P0001', 'attestation_id', 'event');
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_events
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001');
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.ingress_attestation_heads
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-005', 'P0001', 'caller_identity', 'chain_seq');
ALTER TABLE orchestration.ingress_attestation_heads ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_heads
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-005', 'P0001');
ALTER TABLE orchestration.ingress_attestation_heads ENABLE ALWAYS TRIGGER no_truncate
"""
    )

    op.execute(
        """
-- An element of append_attestations.
CREATE TYPE orchestration.new_attestation AS (
  caller_identity text,
  idempotency_key text,
  payload_hash text,
  policy_version_id text,
  signature_hash text,
  client_cert_fingerprint_sha256 text,
  token_hash text
);

ALTER TYPE orchestration.new_attestation OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_attestation FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.append_attestations(p_attestations jsonb)
RETURNS SETOF orchestration.ingress_attestation_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- OFFSET 0 stops the planner from flattening a look-up into a join whose plan, cached on an empty
-- table, would stay wrong for the session.
-- The function is long because it checks every element of the batch before it takes a lock, and
-- names the reason of each refusal.
DECLARE
  v_attestations orchestration.new_attestation[];
  v_bad record;
  v_new uuid[];
  v_new_ids jsonb;
  v_replayed boolean[];
BEGIN
  IF jsonb_typeof(p_attestations) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_attestations) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_attestations must be an array of 0 to 10,000 objects',
      'ingress_attestations', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_attestations) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_attestations must be at most 64 MiB',
      'ingress_attestations', '{}', 'Split the batch.'
    );
  END IF;
  v_attestations := ARRAY(
    SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_attestation, p_attestations) AS r
  );
  -- This check comes before the CHECK constraints because their DETAIL shows the row, and a value
  -- that is not a hash can be the credential itself.
  SELECT h.ordinality, h.malformed
  INTO v_bad
  FROM (
    SELECT r.ordinality,
           CASE
             WHEN octet_length(r.payload_hash) <> 64 OR r.payload_hash !~ '^[0-9a-f]*$'
               THEN 'payload_hash'
             WHEN octet_length(r.signature_hash) <> 64 OR r.signature_hash !~ '^[0-9a-f]*$'
               THEN 'signature_hash'
             WHEN octet_length(r.client_cert_fingerprint_sha256) <> 64
               OR r.client_cert_fingerprint_sha256 !~ '^[0-9a-f]*$'
               THEN 'client_cert_fingerprint_sha256'
             WHEN octet_length(r.token_hash) <> 64 OR r.token_hash !~ '^[0-9a-f]*$'
               THEN 'token_hash'
           END AS malformed
    FROM unnest(v_attestations) WITH ORDINALITY AS r
  ) h
  WHERE h.malformed IS NOT NULL
  ORDER BY h.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', format('%s must be a SHA-256 in lowercase hex', v_bad.malformed),
      'ingress_attestations',
      jsonb_build_object('ordinal', v_bad.ordinality, 'column', v_bad.malformed),
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.',
      v_bad.malformed
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row.
  SELECT t.ordinality, t.missing, t.malformed
  INTO v_bad
  FROM (
    SELECT r.ordinality,
           CASE
             WHEN r.caller_identity IS NULL THEN 'caller_identity'
             WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
             WHEN r.payload_hash IS NULL THEN 'payload_hash'
           END AS missing,
           CASE
             WHEN octet_length(r.caller_identity) NOT BETWEEN 1 AND 1000 THEN 'caller_identity'
             WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
             WHEN octet_length(r.policy_version_id) > 1000 THEN 'policy_version_id'
           END AS malformed
    FROM unnest(v_attestations) WITH ORDINALITY AS r
  ) t
  WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
  ORDER BY t.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.refuse_element(
      'ingress_attestations', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.share_gate('policy_gate');
  PERFORM orchestration.share_gate('revocation_gate');
  INSERT INTO orchestration.ingress_attestation_heads AS h (caller_identity)
  SELECT DISTINCT n.caller_identity
  FROM unnest(v_attestations) AS n
  ORDER BY n.caller_identity
  ON CONFLICT (caller_identity) DO UPDATE SET chain_seq = h.chain_seq;

  -- Check only new attestations. A replay returns the record that was accepted before.
  SELECT n.caller_identity, n.idempotency_key, n.policy_version_id,
         n.accepted, n.cert_revoked, n.token_revoked
  INTO v_bad
  FROM (
    SELECT r.*,
           EXISTS (
             SELECT FROM orchestration.accepted_policy_versions v
             WHERE v.id = r.policy_version_id
               -- A GRACE that had expired at the caller's newest attestation stays expired, even
               -- if the clock has been set back since.
               AND (v.grace_expires_at IS NULL OR coalesce(v.grace_expires_at > (
                 SELECT a.attested_at
                 FROM orchestration.ingress_attestations a
                 WHERE a.caller_identity = r.caller_identity
                 ORDER BY a.chain_seq DESC
                 LIMIT 1
               ), true))
             OFFSET 0
           ) AS accepted,
           EXISTS (
             SELECT FROM orchestration.revoked_client_certs_in_force c
             WHERE c.cert_fingerprint_sha256 = r.client_cert_fingerprint_sha256
             OFFSET 0
           ) AS cert_revoked,
           EXISTS (
             SELECT FROM orchestration.revoked_tokens_in_force t
             WHERE t.token_hash = r.token_hash
             OFFSET 0
           ) AS token_revoked
    FROM unnest(v_attestations) WITH ORDINALITY AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.ingress_attestations a
      WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
      OFFSET 0
    )
  ) n
  WHERE NOT n.accepted OR n.cert_revoked OR n.token_revoked
  ORDER BY n.ordinality
  LIMIT 1;
  IF FOUND THEN
    IF NOT v_bad.accepted THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-008', 'P7105',
        format('policy version %s is not accepted', coalesce(v_bad.policy_version_id, 'null')),
        'policy_versions',
        jsonb_build_object('id', v_bad.policy_version_id,
          'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
        'Use a policy version that accepted_policy_versions shows.', 'id'
      );
    END IF;
    IF v_bad.cert_revoked THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-009', 'P7202', 'the client certificate is revoked', 'revoked_client_certs',
        jsonb_build_object('credential', 'CLIENT_CERT',
          'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
        'Have the client present another certificate.', 'cert_fingerprint_sha256'
      );
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the token is revoked', 'revoked_tokens',
      jsonb_build_object('credential', 'TOKEN',
        'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
      'Have the caller obtain another token.', 'token_hash'
    );
  END IF;

  WITH entered AS (
  INSERT INTO orchestration.ingress_attestations (
    caller_identity, idempotency_key, payload_hash, signature_hash,
    client_cert_fingerprint_sha256, token_hash, policy_version_id
  )
  SELECT r.caller_identity, r.idempotency_key, r.payload_hash, r.signature_hash,
         r.client_cert_fingerprint_sha256, r.token_hash, r.policy_version_id
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  WHERE NOT EXISTS (
    SELECT FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  )
  ORDER BY r.ordinality
  ON CONFLICT (caller_identity, idempotency_key) DO NOTHING
  RETURNING id
  )
  SELECT array_agg(e.id) INTO v_new FROM entered e;

  SELECT a.id, a.caller_identity, a.idempotency_key
  INTO v_bad
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT a.id, a.caller_identity, a.idempotency_key, a.payload_hash
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  ) a
  WHERE a.payload_hash IS DISTINCT FROM r.payload_hash
  ORDER BY r.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-007', 'P7303', 'the idempotency key was attested with a different payload_hash',
      'ingress_attestations',
      jsonb_build_object('id', v_bad.id, 'caller_identity', v_bad.caller_identity,
        'idempotency_key', v_bad.idempotency_key),
      'Use a new idempotency key for new content.', 'idempotency_key'
    );
  END IF;
  IF cardinality(v_new) < jsonb_array_length(p_attestations) THEN
    -- Some elements are new and some are not. If a key occurs twice, its first element is new.
    SELECT jsonb_object_agg(n.id, NULL) INTO v_new_ids FROM unnest(v_new) AS n (id);
    SELECT array_agg(f.replayed ORDER BY f.ordinality)
    INTO v_replayed
    FROM (
      SELECT r.ordinality,
             NOT v_new_ids ? a.id::text
               OR row_number() OVER (PARTITION BY a.id ORDER BY r.ordinality) > 1 AS replayed
      FROM unnest(v_attestations) WITH ORDINALITY AS r
      CROSS JOIN LATERAL (
        SELECT a.id
        FROM orchestration.ingress_attestations a
        WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
        OFFSET 0
      ) a
    ) f;
  END IF;
  RETURN QUERY
  SELECT a.*, coalesce(v_replayed[r.ordinality], v_new IS NULL)
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT a.*
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  ) a
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.append_attestations OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.append_attestations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.append_attestations TO symphony_ingest
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_attestation_event(
  p_attestation_id uuid,
  p_event text,
  p_terminal_status text DEFAULT NULL,
  p_recorded_by text DEFAULT SESSION_USER
) RETURNS SETOF orchestration.ingress_attestation_event_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_attestation orchestration.ingress_attestations;
  v_recorded orchestration.ingress_attestation_event_result;
  v_replayed boolean;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'ingress_attestation_events', ARRAY['event', 'terminal_status', 'recorded_by'],
    ARRAY[p_event, p_terminal_status, p_recorded_by]
  );
  SELECT a.* INTO v_attestation
  FROM orchestration.ingress_attestations a
  WHERE a.id = p_attestation_id;
  IF v_attestation.id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the attestation does not exist', 'ingress_attestations',
      jsonb_build_object('id', p_attestation_id), 'Check the id.', 'id'
    );
  END IF;
  IF p_event = 'EXECUTION_STARTED' AND v_attestation.execution_started
    OR p_event = 'EXECUTION_COMPLETED' AND v_attestation.execution_completed THEN
    -- The attestation was stored with this event. Return it as a recorded event.
    v_recorded := ROW(
      v_attestation.id, p_event, v_attestation.caller_identity,
      CASE WHEN p_event = 'EXECUTION_COMPLETED' THEN v_attestation.terminal_status END,
      v_attestation.attested_at, v_attestation.db_user, v_attestation.db_user,
      v_attestation.xact_id, true
    );
  ELSE
    INSERT INTO orchestration.ingress_attestation_events
      (attestation_id, event, terminal_status, recorded_by)
    VALUES (p_attestation_id, p_event, p_terminal_status, p_recorded_by)
    ON CONFLICT DO NOTHING;
    v_replayed := NOT FOUND;
    SELECT e.*, v_replayed INTO v_recorded
    FROM orchestration.ingress_attestation_events e
    WHERE e.attestation_id = p_attestation_id AND e.event = p_event;
  END IF;
  IF v_recorded.terminal_status IS DISTINCT FROM p_terminal_status THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'the event is already recorded with a different terminal_status',
      'ingress_attestation_events',
      jsonb_build_object('attestation_id', p_attestation_id, 'event', p_event,
        'terminal_status', v_recorded.terminal_status),
      'ingress_attestation_status shows the recorded terminal_status.', 'terminal_status'
    );
  END IF;
  RETURN NEXT v_recorded;
END
$$;

ALTER FUNCTION orchestration.record_attestation_event OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_attestation_event FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_attestation_event TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.verify_attestation_chain(p_caller_identity text)
RETURNS TABLE (
  ok boolean,
  records bigint,
  break_chain_seq bigint,
  break_attestation_id uuid,
  break_reason text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because all kinds of break are found by one query over one snapshot.
  WITH chain AS (
    SELECT a AS record,
           row_number() OVER w AS expected_seq,
           lag(a.record_hash, 1, '') OVER w AS expected_prev,
           lag(a.attested_at) OVER w AS previous_attested_at
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = p_caller_identity
    WINDOW w AS (ORDER BY a.chain_seq)
  ), checked AS (
    SELECT (c.record).chain_seq,
           (c.record).id,
           (c.record).record_hash,
           CASE
             WHEN (c.record).chain_seq <> c.expected_seq
               THEN 'records before this one are missing'
             WHEN (c.record).prev_hash <> c.expected_prev
               THEN 'prev_hash is not the record_hash of the row before'
             WHEN (c.record).record_hash <> orchestration.attestation_record_hash(c.record)
               THEN 'record_hash is not the hash of the record'
             WHEN (c.record).attested_at < c.previous_attested_at
               THEN 'attested_at is earlier than in the record before'
           END AS reason
    FROM chain c
  ), breaks AS (
    SELECT c.chain_seq, c.id, c.reason FROM checked c WHERE c.reason IS NOT NULL
    UNION ALL
    SELECT h.chain_seq, NULL,
           CASE WHEN l.chain_seq = h.chain_seq
             THEN 'the head has a different record_hash'
             ELSE 'the newest records are missing: the head is ahead'
           END
    FROM orchestration.ingress_attestation_heads h
    LEFT JOIN LATERAL (
      SELECT c.chain_seq, c.record_hash FROM checked c ORDER BY c.chain_seq DESC LIMIT 1
    ) l ON true
    WHERE h.caller_identity = p_caller_identity
      AND (h.chain_seq > coalesce(l.chain_seq, 0)
        OR h.chain_seq = l.chain_seq AND h.record_hash <> l.record_hash)
    UNION ALL
    SELECT NULL, e.attestation_id, 'an event has no attestation of the same caller'
    FROM orchestration.ingress_attestation_events e
    WHERE e.caller_identity = p_caller_identity
      AND NOT EXISTS (
        SELECT FROM orchestration.ingress_attestations a
        WHERE a.id = e.attestation_id AND a.caller_identity = e.caller_identity
      )
    UNION ALL
    SELECT a.chain_seq, a.id, 'EXECUTION_COMPLETED without EXECUTION_STARTED'
    FROM orchestration.ingress_attestation_events e
    JOIN orchestration.ingress_attestations a ON a.id = e.attestation_id
    WHERE a.caller_identity = p_caller_identity
      AND e.event = 'EXECUTION_COMPLETED'
      AND NOT a.execution_started
      AND NOT EXISTS (
        SELECT FROM orchestration.ingress_attestation_events s
        WHERE s.attestation_id = e.attestation_id AND s.event = 'EXECUTION_STARTED'
      )
    UNION ALL
    SELECT a.chain_seq, a.id, 'the policy version does not exist'
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = p_caller_identity
      AND NOT EXISTS (
        SELECT FROM orchestration.policy_versions p WHERE p.id = a.policy_version_id)
    UNION ALL
    SELECT NULL, NULL, 'p_caller_identity is null'
    WHERE p_caller_identity IS NULL
  )
  SELECT b.reason IS NULL, (SELECT count(*) FROM checked), b.chain_seq, b.id, b.reason
  FROM (SELECT) once
  LEFT JOIN LATERAL (SELECT * FROM breaks ORDER BY chain_seq, id LIMIT 1) b ON true
$$;

ALTER FUNCTION orchestration.verify_attestation_chain OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_attestation_chain FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_attestation_chain
TO symphony_control, symphony_auditor
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0006'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.ingress_attestations) THEN
    RAISE EXCEPTION 'ingress_attestations contains evidence; '
      'to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.verify_attestation_chain")
    op.execute("DROP FUNCTION orchestration.record_attestation_event")
    op.execute("DROP FUNCTION orchestration.append_attestations")
    op.execute("DROP TYPE orchestration.new_attestation")
    op.execute("DROP VIEW orchestration.ingress_attestation_status")
    op.execute("DROP VIEW orchestration.ingress_attestation_event_result")
    op.execute("DROP VIEW orchestration.ingress_attestation_result")
    op.drop_table("ingress_attestation_events", schema="orchestration")
    op.execute("DROP TRIGGER guard ON orchestration.ingress_attestations")
    op.execute("DROP TRIGGER heads ON orchestration.ingress_attestations")
    op.execute("DROP FUNCTION orchestration.guard_attestation_event")
    op.execute("DROP FUNCTION orchestration.advance_attestation_heads")
    op.execute("DROP FUNCTION orchestration.guard_attestation")
    op.execute("DROP FUNCTION orchestration.attestation_record_hash")
    op.drop_table("ingress_attestations", schema="orchestration")
    op.drop_table("ingress_attestation_heads", schema="orchestration")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0005'")
    op.execute("RESET ROLE")
