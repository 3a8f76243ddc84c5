"""Create the outbox: the items, the queue of pending items, and the attempts.

Serves: INV-OUT-001 to INV-OUT-005, INV-OUT-007 to INV-OUT-010, INV-INS-005, INV-INS-006,
INV-INS-007, INV-AUD-001, INV-API-001, INV-API-002. Revision 0010 adds what happens after an
attempt has ended: late results, redrives and the end of the instruction.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    create_tables()
    create_views()
    create_guards()
    create_functions()
    op.execute("UPDATE orchestration.schema_revision SET revision = '0009'")
    op.execute("RESET ROLE")


def create_tables() -> None:
    op.create_table(
        "participant_outbox_sequences",
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("next_sequence_id", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint(
            "octet_length(participant_id) BETWEEN 1 AND 1000",
            name=op.f("ck_participant_outbox_sequences_participant_id"),
        ),
        sa.CheckConstraint(
            "next_sequence_id >= 1", name=op.f("ck_participant_outbox_sequences_next_sequence_id")
        ),
        sa.PrimaryKeyConstraint("participant_id", name=op.f("pk_participant_outbox_sequences")),
        schema="orchestration",
        postgresql_with={"fillfactor": "50"},
    )
    op.execute(
        """
GRANT SELECT ON orchestration.participant_outbox_sequences TO symphony_control, symphony_auditor
"""
    )
    op.create_table(
        "payment_outbox_items",
        sa.Column("outbox_id", sa.Uuid(), nullable=False),
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("sequence_id", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("redrive_no", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("redrive_of", sa.Uuid(), nullable=True),
        sa.Column("rail_type", sa.Text(), nullable=False),
        sa.Column("payload", JSONB(), nullable=False),
        sa.Column(
            "payload_salt",
            sa.LargeBinary(),
            server_default=sa.text("uuid_send(gen_random_uuid())"),
            nullable=False,
        ),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("20"), nullable=False),
        sa.Column("context", JSONB(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("db_user", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "xact_id",
            sa.BigInteger(),
            server_default=sa.text("pg_current_xact_id()::text::bigint"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "octet_length(participant_id) BETWEEN 1 AND 1000",
            name=op.f("ck_payment_outbox_items_participant_id"),
        ),
        sa.CheckConstraint("sequence_id >= 1", name=op.f("ck_payment_outbox_items_sequence_id")),
        sa.CheckConstraint(
            "octet_length(idempotency_key) BETWEEN 1 AND 1000",
            name=op.f("ck_payment_outbox_items_idempotency_key"),
        ),
        sa.CheckConstraint(
            "redrive_no >= 0 AND (redrive_no = 0) = (redrive_of IS NULL)",
            name=op.f("ck_payment_outbox_items_redrive"),
        ),
        sa.CheckConstraint(
            "octet_length(rail_type) BETWEEN 1 AND 1000",
            name=op.f("ck_payment_outbox_items_rail_type"),
        ),
        sa.CheckConstraint(
            "octet_length(payload::text) <= 1000000"
            " AND jsonb_typeof(payload) = 'object' AND (octet_length(payload::text) <= 1000"
            " OR NOT jsonb_path_exists(payload, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(payload, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name=op.f("ck_payment_outbox_items_payload"),
        ),
        sa.CheckConstraint(
            "octet_length(payload_salt) = 16", name=op.f("ck_payment_outbox_items_payload_salt")
        ),
        sa.CheckConstraint(
            "payload_hash = encode(sha256('orchestration.payload.v1'::bytea || payload_salt"
            " || convert_to(payload::text, 'UTF8')), 'hex')",
            name=op.f("ck_payment_outbox_items_payload_hash"),
        ),
        sa.CheckConstraint(
            "max_attempts BETWEEN 1 AND 1000", name=op.f("ck_payment_outbox_items_max_attempts")
        ),
        sa.CheckConstraint(
            "jsonb_typeof(context) = 'object' AND octet_length(context::text) <= 8192"
            " AND (octet_length(context::text) <= 1000"
            " OR NOT jsonb_path_exists(context, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(context, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name=op.f("ck_payment_outbox_items_context"),
        ),
        sa.CheckConstraint(
            "extract(year FROM created_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_payment_outbox_items_years"),
        ),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("pk_payment_outbox_items")),
        sa.UniqueConstraint(
            "instruction_id",
            "idempotency_key",
            "redrive_no",
            name=op.f("uq_payment_outbox_items_key"),
        ),
        sa.UniqueConstraint(
            "participant_id",
            "sequence_id",
            name=op.f("uq_payment_outbox_items_participant_id_sequence_id"),
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_payment_outbox_items_xact_id"),
        "payment_outbox_items",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.payment_outbox_items
TO symphony_executor, symphony_control, symphony_auditor
"""
    )
    op.create_table(
        "payment_outbox_pending",
        sa.Column("outbox_id", sa.Uuid(), nullable=False),
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("sequence_id", sa.BigInteger(), nullable=False),
        sa.Column("rail_type", sa.Text(), nullable=False),
        sa.Column("attempt_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "next_attempt_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("open", sa.Boolean(), sa.Computed("true", persisted=True), nullable=False),
        sa.CheckConstraint(
            "attempt_count >= 0", name=op.f("ck_payment_outbox_pending_attempt_count")
        ),
        sa.CheckConstraint(
            "extract(year FROM next_attempt_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_payment_outbox_pending_next_attempt_at"),
        ),
        sa.CheckConstraint(
            "num_nulls(claimed_by, lease_token, lease_expires_at) IN (0, 3)"
            " AND isfinite(lease_expires_at) AND octet_length(claimed_by) <= 1000",
            name=op.f("ck_payment_outbox_pending_lease"),
        ),
        sa.ForeignKeyConstraint(
            ["participant_id", "instruction_id", "open"],
            [
                "orchestration.instructions.participant_id",
                "orchestration.instructions.id",
                "orchestration.instructions.open",
            ],
            name=op.f("fk_payment_outbox_pending_participant_id_instruction_id_open"),
        ),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("pk_payment_outbox_pending")),
        schema="orchestration",
        postgresql_with={"fillfactor": "40"},
    )
    op.create_index(
        op.f("ix_payment_outbox_pending_instruction_id"),
        "payment_outbox_pending",
        ["instruction_id"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_payment_outbox_pending_next_attempt_at_outbox_id"),
        "payment_outbox_pending",
        ["next_attempt_at", "outbox_id"],
        schema="orchestration",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.payment_outbox_pending
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.create_table(
        "payment_outbox_attempts",
        sa.Column("outbox_id", sa.Uuid(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("requested_state", sa.Text(), nullable=True),
        sa.Column("requested_error_code", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rail_reference", sa.Text(), nullable=True),
        sa.Column("rail_code", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("db_user", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column(
            "xact_id",
            sa.BigInteger(),
            server_default=sa.text("pg_current_xact_id()::text::bigint"),
            nullable=False,
        ),
        sa.CheckConstraint("attempt_no >= 1", name=op.f("ck_payment_outbox_attempts_attempt_no")),
        sa.CheckConstraint(
            "CASE phase"
            " WHEN 'OPEN' THEN state = 'DISPATCHING'"
            " WHEN 'CLOSE' THEN state IN ('DISPATCHED', 'RETRYABLE', 'FAILED', 'ZOMBIE_REQUEUE')"
            " ELSE false END",
            name=op.f("ck_payment_outbox_attempts_state"),
        ),
        sa.CheckConstraint(
            "CASE state"
            " WHEN 'FAILED' THEN outcome IS NOT NULL"
            " WHEN 'RETRYABLE' THEN true"
            " ELSE outcome IS NULL END"
            " AND outcome IN ('REJECTED', 'UNKNOWN', 'NOT_SENT')",
            name=op.f("ck_payment_outbox_attempts_outcome"),
        ),
        sa.CheckConstraint(
            "CASE"
            " WHEN phase = 'OPEN' THEN requested_state IS NULL"
            " WHEN requested_state IS NULL THEN state IN ('FAILED', 'ZOMBIE_REQUEUE')"
            " WHEN requested_state = 'RETRYABLE' THEN state IN ('RETRYABLE', 'FAILED')"
            " WHEN requested_state IN ('DISPATCHED', 'FAILED') THEN state = requested_state"
            " ELSE false END"
            " AND (requested_state IS NOT NULL OR requested_error_code IS NULL)",
            name=op.f("ck_payment_outbox_attempts_requested_state"),
        ),
        sa.CheckConstraint(
            "(phase = 'CLOSE') = (completed_at IS NOT NULL) AND isfinite(claimed_at)",
            name=op.f("ck_payment_outbox_attempts_times"),
        ),
        sa.CheckConstraint(
            "phase = 'CLOSE' OR num_nonnulls(rail_reference, rail_code, error_code,"
            " error_message, latency_ms) = 0",
            name=op.f("ck_payment_outbox_attempts_opening"),
        ),
        sa.CheckConstraint(
            "octet_length(worker_id) BETWEEN 1 AND 1000",
            name=op.f("ck_payment_outbox_attempts_worker_id"),
        ),
        sa.CheckConstraint("latency_ms >= 0", name=op.f("ck_payment_outbox_attempts_latency_ms")),
        sa.CheckConstraint(
            "octet_length(requested_error_code) <= 1000"
            " AND octet_length(rail_reference) <= 1000"
            " AND octet_length(rail_code) <= 1000"
            " AND octet_length(error_code) <= 1000"
            " AND octet_length(error_message) <= 4000",
            name=op.f("ck_payment_outbox_attempts_texts"),
        ),
        sa.PrimaryKeyConstraint(
            "outbox_id", "attempt_no", "phase", name=op.f("pk_payment_outbox_attempts")
        ),
        schema="orchestration",
    )
    op.create_index(
        "uq_payment_outbox_attempts_terminal",
        "payment_outbox_attempts",
        ["outbox_id"],
        unique=True,
        schema="orchestration",
        postgresql_where=sa.text("state IN ('DISPATCHED', 'FAILED')"),
    )
    op.create_index(
        op.f("ix_payment_outbox_attempts_xact_id"),
        "payment_outbox_attempts",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.payment_outbox_attempts
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )


def create_views() -> None:
    op.execute(
        """
CREATE VIEW orchestration.payment_outbox_depth
WITH (security_barrier = true)
AS
SELECT p.rail_type,
       count(*) AS pending,
       count(*) FILTER (WHERE p.lease_token IS NULL AND p.next_attempt_at <= n.now) AS due,
       count(*) FILTER (WHERE p.lease_expires_at > n.now) AS leased,
       count(*) FILTER (WHERE p.lease_expires_at <= n.now) AS expired,
       min(p.next_attempt_at) AS oldest_due_at
FROM orchestration.payment_outbox_pending p
-- The linter cannot parse an OFFSET without a FROM.
CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) n -- noqa: PRS
GROUP BY p.rail_type;

ALTER VIEW orchestration.payment_outbox_depth OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_depth
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- The columns of an item that its functions return. The payload is left out, because the caller
-- already has it. No role reads this view.
CREATE VIEW orchestration.payment_outbox_item_summary
WITH (security_invoker = true)
AS
SELECT i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
       i.redrive_no, i.redrive_of, i.rail_type, i.payload_hash, i.max_attempts, i.context,
       i.created_at, i.db_user
FROM orchestration.payment_outbox_items i;

ALTER VIEW orchestration.payment_outbox_item_summary OWNER TO symphony_owner
"""
    )
    op.execute(
        """
-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_item_result
WITH (security_invoker = true)
AS
SELECT s.*, false AS replayed
FROM orchestration.payment_outbox_item_summary s;

ALTER VIEW orchestration.payment_outbox_item_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
-- claim_outbox_batch returns its rows. OFFSET 0 stops the planner from flattening the look-ups into
-- a join whose plan, cached on an empty table, would stay wrong for the session.
CREATE VIEW orchestration.payment_outbox_claimed
WITH (security_invoker = true)
AS
SELECT p.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
       i.redrive_no, i.rail_type, i.payload, i.payload_hash, p.attempt_count AS attempt_no,
       i.max_attempts, i.context, p.claimed_by AS worker_id, p.lease_token, p.lease_expires_at,
       o.claimed_at
FROM orchestration.payment_outbox_pending p
CROSS JOIN LATERAL (
  SELECT i.*
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p.outbox_id
  OFFSET 0
) i
CROSS JOIN LATERAL (
  SELECT o.claimed_at
  FROM orchestration.payment_outbox_attempts o
  WHERE o.outbox_id = p.outbox_id
    AND o.attempt_no = p.attempt_count
    AND o.phase = 'OPEN'
    AND o.lease_token = p.lease_token
  OFFSET 0
) o
WHERE p.lease_token IS NOT NULL;

ALTER VIEW orchestration.payment_outbox_claimed OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_claimed TO symphony_executor
"""
    )


def create_guards() -> None:
    op.execute(
        """
CREATE FUNCTION orchestration.bump_participant_outbox_seq(p_participant_id text) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Locks the participant's row and returns the next number. The trigger `sequences` updates the row
-- once the item is stored, so an item that is not stored after all leaves no gap.
DECLARE
  v_next bigint;
BEGIN
  PERFORM 1
  FROM orchestration.participant_outbox_sequences s
  WHERE s.participant_id = p_participant_id
  FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id)
    VALUES (p_participant_id)
    ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = s.next_sequence_id;
  END IF;
  SELECT greatest(
    s.next_sequence_id,
    (SELECT max(i.sequence_id) + 1
     FROM orchestration.payment_outbox_items i
     WHERE i.participant_id = p_participant_id)
  )
  INTO v_next
  FROM orchestration.participant_outbox_sequences s
  WHERE s.participant_id = p_participant_id;
  RETURN v_next;
END
$$;

ALTER FUNCTION orchestration.bump_participant_outbox_seq OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.bump_participant_outbox_seq FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.fill_outbox_item() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF current_setting('session_replication_role') <> 'replica' THEN
    NEW.outbox_id := coalesce(NEW.outbox_id, orchestration.uuid_v7());
    NEW.sequence_id := coalesce(
      NEW.sequence_id, orchestration.bump_participant_outbox_seq(NEW.participant_id));
    NEW.payload_hash := coalesce(
      NEW.payload_hash,
      encode(sha256('orchestration.payload.v1'::bytea || NEW.payload_salt
        || convert_to(NEW.payload::text, 'UTF8')), 'hex')
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.fill_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fill_outbox_item FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.advance_outbox_sequences() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id, next_sequence_id)
  SELECT i.participant_id, max(i.sequence_id) + 1
  FROM inserted i
  GROUP BY i.participant_id
  ORDER BY i.participant_id
  ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = excluded.next_sequence_id
  WHERE s.next_sequence_id < excluded.next_sequence_id;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_outbox_sequences OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_outbox_sequences FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_redrive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- The audit log records a redrive, unlike an enqueue, because an operator decides on it. The entry
-- leaves out payload and context: both can be erased later, but the audit log cannot.
BEGIN
  IF EXISTS (SELECT FROM inserted i WHERE i.redrive_no > 0) THEN
    INSERT INTO orchestration.audit_log (action, table_name, after)
    SELECT 'REDRIVE', 'payment_outbox_items',
           jsonb_object_agg(i.outbox_id, to_jsonb(i) - '{payload,payload_salt,context,xact_id}'::text[])
    FROM inserted i
    WHERE i.redrive_no > 0;
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_redrive OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_redrive FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_outbox_items() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The function is long because it checks one statement's items as a whole, in three queries: their
-- instructions, each item, and the numbers of each participant.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied pending row and the earlier items arrive separately. verify_outbox reports what is
    -- missing.
    RETURN NULL;
  END IF;
  -- The lock makes an INSERT by hand wait for a completion that ends UNKNOWN, and raises 40001 if
  -- the snapshot is older. enqueue_payment_outbox and redrive_outbox_item have taken it already.
  SELECT n.instruction_id, i.unresolved
  INTO v_bad
  FROM (SELECT DISTINCT n.instruction_id FROM inserted n ORDER BY n.instruction_id OFFSET 0) n
  CROSS JOIN LATERAL (
    SELECT i.unresolved
    FROM orchestration.instructions i
    WHERE i.id = n.instruction_id
    FOR SHARE
  ) i
  ORDER BY i.unresolved DESC
  LIMIT 1;
  IF v_bad.unresolved > 0 THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is UNKNOWN',
      'instructions',
      jsonb_build_object('id', v_bad.instruction_id, 'unresolved', v_bad.unresolved),
      'Find out what the rail did, then use resolve_outbox_item. payment_outbox_unresolved lists'
        ' the items.',
      'unresolved'
    );
  END IF;
  SELECT n.outbox_id, f.forged
  INTO v_bad
  FROM inserted n
  CROSS JOIN LATERAL (
    SELECT n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id OR n.created_at > v_now AS forged,
           NOT EXISTS (
             SELECT FROM orchestration.payment_outbox_pending p
             WHERE p.outbox_id = n.outbox_id
             OFFSET 0
           ) AS not_pending
  ) f
  WHERE f.forged OR f.not_pending
  LIMIT 1;
  IF FOUND THEN
    CASE
      WHEN v_bad.forged THEN
        PERFORM orchestration.raise_invariant(
          'INV-OUT-001', '22023', 'db_user, xact_id and created_at are set by the database',
          'payment_outbox_items', jsonb_build_object('outbox_id', v_bad.outbox_id),
          'Leave db_user, xact_id and created_at out.', 'db_user'
        );
      ELSE
        PERFORM orchestration.raise_invariant(
          'INV-OUT-009', 'P7006', 'the item has no pending row', 'payment_outbox_items',
          jsonb_build_object('outbox_id', v_bad.outbox_id),
          'Use enqueue_payment_outbox: it inserts both rows in one statement.', 'outbox_id'
        );
    END CASE;
    RETURN NULL;
  END IF;
  -- A counter that is ahead of the items passes here: verify_outbox reports it.
  SELECT p.participant_id, p.first, p.last, p.items
  INTO v_bad
  FROM (
    SELECT n.participant_id,
           min(n.sequence_id) AS first,
           max(n.sequence_id) AS last,
           count(*) AS items
    FROM inserted n
    GROUP BY n.participant_id
  ) p
  CROSS JOIN LATERAL (
    SELECT p.last - p.first <> p.items - 1 AS has_gap,
           p.first > 1
             AND NOT EXISTS (
               SELECT FROM orchestration.payment_outbox_items i
               WHERE i.participant_id = p.participant_id AND i.sequence_id = p.first - 1
               OFFSET 0
             )
             AND NOT EXISTS (
               SELECT FROM orchestration.participant_outbox_sequences s
               WHERE s.participant_id = p.participant_id AND s.next_sequence_id = p.first
               OFFSET 0
             ) AS not_next
  ) f
  WHERE f.has_gap OR f.not_next
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-007', '22023', 'sequence_id does not continue the numbers of the participant',
      'payment_outbox_items',
      jsonb_build_object('participant_id', v_bad.participant_id, 'first', v_bad.first,
        'last', v_bad.last, 'items', v_bad.items),
      'Leave sequence_id out: the database sets it.', 'sequence_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_items OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_items FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_outbox_pending_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_outbox_id uuid;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- A copied row may have a lease. verify_outbox compares it with its item and attempts.
    RETURN NULL;
  END IF;
  -- The item must have been inserted by this transaction: no other transaction can have ended it.
  SELECT n.outbox_id INTO v_outbox_id
  FROM inserted n
  WHERE n.attempt_count <> 0
    OR n.lease_token IS NOT NULL
    OR NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = n.outbox_id
        AND i.instruction_id = n.instruction_id
        AND i.participant_id = n.participant_id
        AND i.sequence_id = n.sequence_id
        AND i.rail_type = n.rail_type
        AND i.xact_id = v_xact_id
      OFFSET 0
    )
    OR EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = n.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
      OFFSET 0
    )
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'a pending row must be inserted with its item and without a lease',
      'payment_outbox_pending', jsonb_build_object('outbox_id', v_outbox_id),
      'Use enqueue_payment_outbox: it inserts both rows in one statement.', 'outbox_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_insert OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_insert FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_outbox_pending_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The trigger's WHEN clause calls this only if an identity column or attempt_count changes, if a
-- lease is renewed under its token, or if a lease ends.
DECLARE
  v_copied boolean := current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription();
  v_opened integer;
  v_closed integer;
BEGIN
  IF (NEW.outbox_id, NEW.instruction_id, NEW.participant_id, NEW.sequence_id, NEW.rail_type)
    IS DISTINCT FROM
    (OLD.outbox_id, OLD.instruction_id, OLD.participant_id, OLD.sequence_id, OLD.rail_type) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'the identity of a pending row cannot change',
      'payment_outbox_pending', jsonb_build_object('outbox_id', OLD.outbox_id),
      'Only the lease, attempt_count and next_attempt_at can change.', 'outbox_id'
    );
  END IF;
  IF OLD.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token THEN
    IF v_copied THEN
      -- The copied attempts may arrive later. verify_outbox reports those that contradict the row.
      RETURN NEW;
    END IF;
    SELECT coalesce(max(a.attempt_no) FILTER (WHERE a.phase = 'OPEN'), 0),
           coalesce(max(a.attempt_no) FILTER (WHERE a.phase = 'CLOSE'), 0)
    INTO v_opened, v_closed
    FROM orchestration.payment_outbox_attempts a
    WHERE a.outbox_id = OLD.outbox_id;
    IF NEW.lease_token IS NOT NULL OR v_opened <> v_closed OR NEW.attempt_count <> v_closed THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'a lease cannot end before its attempt is closed',
        'payment_outbox_pending',
        jsonb_build_object('outbox_id', OLD.outbox_id, 'worker_id', OLD.claimed_by),
        'Use complete_outbox_attempt or repair_expired_leases: they close the attempt first.',
        'lease_expires_at'
      );
    END IF;
    RETURN NEW;
  END IF;
  IF NEW.attempt_count
    <> OLD.attempt_count + (OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL)::integer THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005', 'attempt_count must grow by 1 with a new lease, and only then',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', OLD.outbox_id, 'attempt_count', NEW.attempt_count),
      'Use claim_outbox_batch to open an attempt.', 'attempt_count'
    );
  END IF;
  IF NEW.claimed_by <> OLD.claimed_by
    OR OLD.lease_expires_at <= clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-002', 'P7002', 'only the worker of a lease can renew it, and only before it expires',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', OLD.outbox_id, 'worker_id', NEW.claimed_by),
      'Claim the item again: another worker may have it now.', 'lease_expires_at'
    );
  END IF;
  IF NOT v_copied THEN
    -- Claims and repairs read rows up to the current time in next_attempt_at order. They would miss
    -- an expired lease whose row has a later next_attempt_at.
    NEW.next_attempt_at := least(NEW.next_attempt_at, NEW.lease_expires_at);
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_update OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_update FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_outbox_pending_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_outbox_id uuid;
BEGIN
  SELECT d.outbox_id INTO v_outbox_id
  FROM deleted d
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts t
    WHERE t.outbox_id = d.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
    OFFSET 0
  )
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'a pending row cannot be deleted before its item ended',
      'payment_outbox_pending', jsonb_build_object('outbox_id', v_outbox_id),
      'Use complete_outbox_attempt: it deletes the row when the item is DISPATCHED or FAILED.',
      'outbox_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_delete OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_delete FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_outbox_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The function is long because one pass over the rows looks up all that the four refusals need. It
-- runs in every claim and completion.
-- OFFSET 0 stops the planner from flattening the look-ups into joins. The plan of such a join, made
-- while the tables were empty, would stay slow for the session.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_since timestamptz := statement_timestamp();
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- Copied attempts arrive in any order, and their leases have ended. verify_outbox reports
    -- attempts that do not belong together.
    RETURN NULL;
  END IF;
  SELECT n.outbox_id, n.attempt_no, n.phase, n.state, n.worker_id,
         f.forged, f.out_of_order, f.past_ceiling, f.lease_lost
  INTO v_bad
  FROM inserted n
  LEFT JOIN LATERAL (
    SELECT p.lease_token, p.claimed_by, p.lease_expires_at, p.attempt_count
    FROM orchestration.payment_outbox_pending p
    WHERE p.outbox_id = n.outbox_id
    OFFSET 0
  ) p ON true
  LEFT JOIN LATERAL (
    SELECT o.lease_token, o.worker_id, o.claimed_at
    FROM orchestration.payment_outbox_attempts o
    WHERE n.phase = 'CLOSE'
      AND o.outbox_id = n.outbox_id
      AND o.attempt_no = n.attempt_no
      AND o.phase = 'OPEN'
    OFFSET 0
  ) o ON true
  LEFT JOIN LATERAL (
    SELECT c.state
    FROM orchestration.payment_outbox_attempts c
    WHERE n.phase = 'OPEN'
      AND n.attempt_no > 1
      AND c.outbox_id = n.outbox_id
      AND c.attempt_no = n.attempt_no - 1
      AND c.phase = 'CLOSE'
    OFFSET 0
  ) c ON true
  LEFT JOIN LATERAL (
    SELECT i.max_attempts
    FROM orchestration.payment_outbox_items i
    WHERE n.state IN ('DISPATCHING', 'RETRYABLE', 'ZOMBIE_REQUEUE')
      AND i.outbox_id = n.outbox_id
    OFFSET 0
  ) i ON true
  CROSS JOIN LATERAL (
    SELECT n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id AS forged,
           CASE n.phase
             WHEN 'OPEN' THEN i.max_attempts IS NULL
               OR n.attempt_no > 1 AND coalesce(c.state, 'DISPATCHED') IN ('DISPATCHED', 'FAILED')
             ELSE o.lease_token IS NULL
           END AS out_of_order,
           CASE n.phase
             WHEN 'OPEN' THEN n.attempt_no > i.max_attempts
             ELSE n.attempt_no >= i.max_attempts
           END AS past_ceiling,
           n.phase = 'OPEN'
             AND ((p.lease_token, p.claimed_by, p.attempt_count)
                 IS DISTINCT FROM (n.lease_token, n.worker_id, n.attempt_no)
               OR p.lease_expires_at <= n.claimed_at
               OR n.claimed_at NOT BETWEEN v_since AND v_now) AS unclaimed,
           n.phase <> 'OPEN'
             AND ((n.lease_token, n.worker_id, n.claimed_at)
                 IS DISTINCT FROM (o.lease_token, o.worker_id, o.claimed_at)
               OR (n.lease_token, n.worker_id) IS DISTINCT FROM (p.lease_token, p.claimed_by)
               OR n.completed_at NOT BETWEEN v_since AND v_now
               -- A worker or a cancellation closes before the lease expires, a claim or a repair
               -- after it.
               OR (n.requested_state IS NOT NULL
                   OR coalesce(n.outcome, 'UNKNOWN') <> 'UNKNOWN'
                   OR coalesce(n.error_code, '') = 'CANCELLED')
                 <> (p.lease_expires_at > n.completed_at)) AS lease_lost
  ) f
  WHERE f.forged OR f.out_of_order OR f.past_ceiling OR f.unclaimed OR f.lease_lost
  LIMIT 1;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  CASE
    WHEN v_bad.forged THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-001', '22023', 'db_user and xact_id are set by the database',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'Leave db_user and xact_id out.', 'db_user'
      );
    WHEN v_bad.past_ceiling AND NOT v_bad.out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-003', 'P7003', 'the item has used all its attempts', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'Close the last attempt as DISPATCHED or FAILED. Redrive the item to try again.',
        'attempt_no'
      );
    WHEN v_bad.lease_lost AND NOT v_bad.out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'the attempt cannot be closed under this lease at this time',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'worker_id', v_bad.worker_id, 'state', v_bad.state),
        'A worker must close it before its lease expires; a claim or a repair must do so later.',
        'lease_token'
      );
    ELSE
      PERFORM orchestration.raise_invariant(
        'INV-OUT-005', 'P7005',
        CASE
          WHEN v_bad.out_of_order
            THEN 'the attempt does not follow the earlier attempts of the item'
          ELSE 'the pending row has no lease for this attempt'
        END,
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'phase', v_bad.phase, 'state', v_bad.state),
        'Use claim_outbox_batch to open an attempt, and complete_outbox_attempt to close it once.',
        'attempt_no'
      );
  END CASE;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_attempts FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_items
FOR EACH ROW
WHEN (NEW.outbox_id IS NULL OR NEW.sequence_id IS NULL OR NEW.payload_hash IS NULL)
EXECUTE FUNCTION orchestration.fill_outbox_item()
"""
    )
    op.execute(
        """
CREATE TRIGGER guard AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_items();
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST', 'ENQUEUED');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER kill_switch
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_redrive()
"""
    )
    op.execute(
        """
CREATE TRIGGER sequences AFTER INSERT ON orchestration.payment_outbox_items
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_outbox_sequences()
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_items
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001', 'outbox_id');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_items
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard_insert AFTER INSERT ON orchestration.payment_outbox_pending
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_insert();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_insert
"""
    )
    op.execute(
        """
-- The columns are compared one by one, because a dump and restore would add parentheses to a row
-- comparison, and the restored schema would differ from the fingerprint.
CREATE TRIGGER guard_update BEFORE UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.outbox_id IS DISTINCT FROM NEW.outbox_id
  OR OLD.instruction_id IS DISTINCT FROM NEW.instruction_id
  OR OLD.participant_id IS DISTINCT FROM NEW.participant_id
  OR OLD.sequence_id IS DISTINCT FROM NEW.sequence_id
  OR OLD.rail_type IS DISTINCT FROM NEW.rail_type
  OR OLD.lease_token = NEW.lease_token
    AND (OLD.lease_expires_at, OLD.claimed_by)
      IS DISTINCT FROM (NEW.lease_expires_at, NEW.claimed_by)
  OR OLD.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token
  OR NEW.attempt_count
    <> OLD.attempt_count + (OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL)::integer
)
EXECUTE FUNCTION orchestration.guard_outbox_pending_update();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_update
"""
    )
    op.execute(
        """
CREATE TRIGGER guard_delete AFTER DELETE ON orchestration.payment_outbox_pending
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_delete();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_pending
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-009', 'P7006');
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard AFTER INSERT ON orchestration.payment_outbox_attempts
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_attempts();
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_attempts
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed(
  'DISPATCH', 'OPENED', 'payment_outbox_pending');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER kill_switch
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-OUT-001', 'P0001', 'outbox_id', 'attempt_no', 'phase');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_attempts
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.participant_outbox_sequences
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-OUT-007', 'P0001', 'participant_id', 'next_sequence_id');
ALTER TABLE orchestration.participant_outbox_sequences ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.participant_outbox_sequences
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-007', 'P0001');
ALTER TABLE orchestration.participant_outbox_sequences ENABLE ALWAYS TRIGGER no_truncate
"""
    )


def create_functions() -> None:
    op.execute(
        """
-- An element of enqueue_payment_outbox.
CREATE TYPE orchestration.new_outbox_item AS (
  instruction_id uuid,
  participant_id text,
  idempotency_key text,
  rail_type text,
  payload jsonb,
  due_at timestamptz,
  max_attempts integer,
  context jsonb
);

ALTER TYPE orchestration.new_outbox_item OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_outbox_item FROM PUBLIC
"""
    )
    op.execute(
        """
-- An element of complete_outbox_attempt.
CREATE TYPE orchestration.outbox_completion AS (
  outbox_id uuid,
  lease_token uuid,
  worker_id text,
  state text,
  outcome text,
  rail_reference text,
  rail_code text,
  error_code text,
  error_message text,
  retry_in interval,
  latency_ms integer
);

ALTER TYPE orchestration.outbox_completion OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.outbox_completion FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.enqueue_payment_outbox(p_items jsonb)
RETURNS SETOF orchestration.payment_outbox_item_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_mergejoin = off
AS $$
-- enable_seqscan and enable_mergejoin are off because the session keeps the first plan. A plan that
-- was made while a table was empty would still read the whole table after it has grown.
-- The function is long because it must check the whole batch before it takes a lock, then lock in
-- one order, and only then look keys and numbers up.
#variable_conflict use_column
DECLARE
  v_items orchestration.new_outbox_item[];
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_now timestamptz;
  v_instructions bigint;
  v_open bigint;
  v_stored bigint;
  v_bad record;
  v_other record;
BEGIN
  IF jsonb_typeof(p_items) IS DISTINCT FROM 'array' OR jsonb_array_length(p_items) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_items must be an array of 0 to 10,000 objects',
      'payment_outbox_items', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_items) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_items must be at most 64 MiB',
      'payment_outbox_items', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_items := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_outbox_item, p_items) AS r
    );
    SELECT t.ordinality, t.missing, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN r.instruction_id IS NULL THEN 'instruction_id'
               WHEN r.participant_id IS NULL THEN 'participant_id'
               WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
               WHEN r.rail_type IS NULL THEN 'rail_type'
               WHEN r.payload IS NULL THEN 'payload'
             END AS missing,
             CASE
               WHEN octet_length(r.participant_id) NOT BETWEEN 1 AND 1000 THEN 'participant_id'
               WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
               WHEN octet_length(r.rail_type) NOT BETWEEN 1 AND 1000 THEN 'rail_type'
               WHEN r.max_attempts NOT BETWEEN 1 AND 1000 THEN 'max_attempts'
               WHEN NOT orchestration.is_storable_payload(r.payload) THEN 'payload'
               WHEN octet_length(r.context::text) > 8192
                 OR NOT orchestration.is_storable_payload(r.context) THEN 'context'
             END AS malformed
      FROM unnest(v_items) WITH ORDINALITY AS r
    ) t
    WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('payment_outbox_items', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'payment_outbox_items', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  SELECT r.instruction_id, r.idempotency_key, r.due_at INTO v_other
  FROM unnest(v_items) AS r
  WHERE r.due_at > clock_timestamp() + interval '400 days'
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'due_at must be at most 400 days ahead', 'payment_outbox_pending',
      jsonb_build_object('instruction_id', v_other.instruction_id,
        'idempotency_key', v_other.idempotency_key, 'due_at', v_other.due_at),
      'Enqueue the item later, when it is due within 400 days.', 'next_attempt_at'
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Lock the instructions first, in one order. Until this transaction ends, none of them can end
  -- and no completion can make an outcome unknown. FOR KEY SHARE would not be enough: such a
  -- completion updates the row but not its keys.
  SELECT count(*),
         count(*) FILTER (
           WHERE i.open AND i.unresolved = 0 AND i.participant_id = r.participant_id)
  INTO v_instructions, v_open
  FROM (
    SELECT DISTINCT r.instruction_id, r.participant_id
    FROM unnest(v_items) AS r
    ORDER BY r.instruction_id
    OFFSET 0
  ) r
  LEFT JOIN LATERAL (
    SELECT i.participant_id, i.open, i.unresolved
    FROM orchestration.instructions i
    WHERE i.id = r.instruction_id
    FOR SHARE
  ) i ON true;
  IF v_open < v_instructions THEN
    -- A replay returns its item even if the instruction has ended since.
    SELECT r.instruction_id, r.participant_id, r.idempotency_key, i.state, i.open, i.unresolved
    INTO v_other
    FROM unnest(v_items) WITH ORDINALITY AS r
    LEFT JOIN orchestration.instructions i
      ON i.id = r.instruction_id AND i.participant_id = r.participant_id
    WHERE (i.open AND i.unresolved = 0) IS NOT TRUE
      AND r.instruction_id IS NOT NULL
      AND r.participant_id IS NOT NULL
      AND NOT EXISTS (
        SELECT FROM orchestration.payment_outbox_items o
        WHERE o.instruction_id = r.instruction_id AND o.idempotency_key = r.idempotency_key
        OFFSET 0
      )
    ORDER BY r.ordinality
    LIMIT 1;
    IF FOUND AND v_other.state IS NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-005', '23503', 'the participant has no such instruction',
        'instructions',
        jsonb_build_object('id', v_other.instruction_id,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Receive and authorize the instruction first.', 'id'
      );
    ELSIF FOUND AND v_other.open THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is unknown',
        'instructions',
        jsonb_build_object('id', v_other.instruction_id, 'unresolved', v_other.unresolved,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows it.',
        'unresolved'
      );
    ELSIF FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-006', 'P7404',
        format('the instruction must be AUTHORIZED or EXECUTING, but is %s', v_other.state),
        'instructions',
        jsonb_build_object('id', v_other.instruction_id, 'state', v_other.state,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Authorize the instruction first. If it has ended, receive a new instruction.', 'state'
      );
    END IF;
  END IF;
  -- Lock the row of each participant in one order, and insert the missing rows. Another enqueue for
  -- the same participant waits here, so it looks keys and numbers up only after this one has ended.
  IF EXISTS (
    SELECT FROM unnest(v_items) AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = r.participant_id
      OFFSET 0
    )
  ) THEN
    INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id)
    SELECT DISTINCT r.participant_id
    FROM unnest(v_items) AS r
    ORDER BY r.participant_id
    ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = s.next_sequence_id;
  ELSE
    PERFORM 1
    FROM (
      SELECT DISTINCT r.participant_id
      FROM unnest(v_items) AS r
      ORDER BY r.participant_id
      OFFSET 0
    ) r
    CROSS JOIN LATERAL (
      SELECT 1
      FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = r.participant_id
      FOR NO KEY UPDATE
    ) s;
  END IF;

  v_now := clock_timestamp();
  WITH fresh AS MATERIALIZED (
    SELECT DISTINCT ON (r.instruction_id, r.idempotency_key) r.*
    FROM unnest(v_items) WITH ORDINALITY AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items i
      WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
      OFFSET 0
    )
    ORDER BY r.instruction_id, r.idempotency_key, r.ordinality
  ), first_free AS MATERIALIZED (
    SELECT f.participant_id,
           greatest(
             s.next_sequence_id,
             (SELECT max(i.sequence_id) + 1
              FROM orchestration.payment_outbox_items i
              WHERE i.participant_id = f.participant_id)
           ) AS sequence_id
    FROM (SELECT DISTINCT participant_id FROM fresh) f
    CROSS JOIN LATERAL (
      SELECT s.next_sequence_id
      FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = f.participant_id
      OFFSET 0
    ) s
  ), numbered AS MATERIALIZED (
    SELECT f.*,
           orchestration.uuid_v7() AS outbox_id,
           uuid_send(gen_random_uuid()) AS payload_salt,
           n.sequence_id - 1
             + row_number() OVER (PARTITION BY f.participant_id ORDER BY f.ordinality) AS sequence_id
    FROM fresh f
    JOIN first_free n ON n.participant_id = f.participant_id
    ORDER BY f.ordinality
  ), stored AS (
    INSERT INTO orchestration.payment_outbox_items (
      outbox_id, instruction_id, participant_id, sequence_id, idempotency_key, rail_type,
      payload, payload_salt, payload_hash, max_attempts, context
    )
    SELECT n.outbox_id, n.instruction_id, n.participant_id, n.sequence_id, n.idempotency_key,
           n.rail_type, n.payload, n.payload_salt,
           encode(sha256('orchestration.payload.v1'::bytea || n.payload_salt
             || convert_to(n.payload::text, 'UTF8')), 'hex'),
           coalesce(n.max_attempts, 20), nullif(n.context, 'null')
    FROM numbered n
    ON CONFLICT (instruction_id, idempotency_key, redrive_no) DO NOTHING
    RETURNING outbox_id
  ), pending AS (
    INSERT INTO orchestration.payment_outbox_pending (
      outbox_id, instruction_id, participant_id, sequence_id, rail_type, next_attempt_at
    )
    SELECT n.outbox_id, n.instruction_id, n.participant_id, n.sequence_id, n.rail_type,
           coalesce(n.due_at, clock_timestamp())
    FROM numbered n
    JOIN stored s ON s.outbox_id = n.outbox_id
  )
  SELECT count(*) INTO v_stored FROM stored;
  IF v_stored < jsonb_array_length(p_items) THEN
    SELECT i.outbox_id, i.instruction_id, i.idempotency_key
    INTO v_other
    FROM unnest(v_items) WITH ORDINALITY AS r
    CROSS JOIN LATERAL (
      SELECT i.*
      FROM orchestration.payment_outbox_items i
      WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
      ORDER BY i.redrive_no DESC
      LIMIT 1
    ) i
    WHERE (i.participant_id, i.rail_type, i.payload::text)
      IS DISTINCT FROM (r.participant_id, r.rail_type, r.payload::text)
    ORDER BY r.ordinality
    LIMIT 1;
    IF FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-004', 'P7004', 'the idempotency key was used with different content',
        'payment_outbox_items',
        jsonb_build_object('outbox_id', v_other.outbox_id,
          'instruction_id', v_other.instruction_id, 'idempotency_key', v_other.idempotency_key),
        'Use a new idempotency key for new content.', 'idempotency_key'
      );
    END IF;
  END IF;
  -- An element is a replay if another transaction, an earlier call of this transaction or an earlier
  -- element stored its item.
  RETURN QUERY
  SELECT s.*,
         i.xact_id <> v_xact_id
           OR s.created_at < v_now
           OR row_number() OVER (PARTITION BY s.outbox_id ORDER BY r.ordinality) > 1
  FROM unnest(v_items) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.outbox_id, i.xact_id
    FROM orchestration.payment_outbox_items i
    WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
    ORDER BY i.redrive_no DESC
    LIMIT 1
  ) i
  CROSS JOIN LATERAL (
    SELECT s.*
    FROM orchestration.payment_outbox_item_summary s
    WHERE s.outbox_id = i.outbox_id
    OFFSET 0
  ) s
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.enqueue_payment_outbox OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.enqueue_payment_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.enqueue_payment_outbox TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.close_dead_attempts(p_outbox_ids uuid[])
RETURNS SETOF orchestration.payment_outbox_attempts
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- Takes pending rows that the caller has locked. Closes the attempts whose lease has expired,
-- deletes the rows whose item has ended, and removes the lease of the others.
-- The function is long because these three statements must run in this order on the same rows.
DECLARE
  v_now timestamptz := clock_timestamp();
BEGIN
  -- An item that has no attempt left ends here as UNKNOWN, and instructions.unresolved counts it.
  -- Another transaction that has locked the instruction may be waiting for these pending rows.
  -- Waiting for its lock would deadlock, so the item is skipped. The next claim or repair closes it.
  SELECT array_agg(d.outbox_id) INTO p_outbox_ids
  FROM (
    SELECT p.outbox_id, p.instruction_id, p.attempt_count >= i.max_attempts AS ends
    FROM orchestration.payment_outbox_pending p
    CROSS JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = p.outbox_id
      OFFSET 0
    ) i
    WHERE p.outbox_id = ANY (p_outbox_ids)
    OFFSET 0
  ) d
  LEFT JOIN LATERAL (
    SELECT true AS locked
    FROM orchestration.instructions n
    WHERE d.ends AND n.id = d.instruction_id
    FOR NO KEY UPDATE SKIP LOCKED
  ) n ON true
  WHERE n.locked OR NOT d.ends;
  RETURN QUERY
  INSERT INTO orchestration.payment_outbox_attempts (
    outbox_id, attempt_no, phase, state, outcome, lease_token, worker_id, claimed_at,
    completed_at, error_code
  )
  SELECT p.outbox_id, p.attempt_count, 'CLOSE',
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'FAILED' ELSE 'ZOMBIE_REQUEUE' END,
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'UNKNOWN' END,
         o.lease_token, o.worker_id, o.claimed_at, v_now,
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'RETRY_CEILING_EXCEEDED' END
  FROM orchestration.payment_outbox_pending p
  CROSS JOIN LATERAL (
    SELECT i.max_attempts
    FROM orchestration.payment_outbox_items i
    WHERE i.outbox_id = p.outbox_id
    OFFSET 0
  ) i
  CROSS JOIN LATERAL (
    SELECT o.lease_token, o.worker_id, o.claimed_at
    FROM orchestration.payment_outbox_attempts o
    WHERE o.outbox_id = p.outbox_id
      AND o.attempt_no = p.attempt_count
      AND o.phase = 'OPEN'
      AND o.lease_token = p.lease_token
      AND o.worker_id = p.claimed_by
    OFFSET 0
  ) o
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND p.lease_expires_at <= v_now
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts c
      WHERE c.outbox_id = p.outbox_id
        AND (c.attempt_no = p.attempt_count AND c.phase = 'CLOSE'
          OR c.state IN ('DISPATCHED', 'FAILED'))
      OFFSET 0
    )
  RETURNING *;
  DELETE FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
      OFFSET 0
    );
  UPDATE orchestration.payment_outbox_pending p
  SET claimed_by = NULL,
      lease_token = NULL,
      lease_expires_at = NULL,
      -- A lease without an opened attempt is not counted.
      attempt_count = coalesce(
        (SELECT max(a.attempt_no)
         FROM orchestration.payment_outbox_attempts a
         WHERE a.outbox_id = p.outbox_id),
        0
      )
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND p.lease_expires_at <= v_now
    -- An attempt that was opened under another lease cannot be closed here. Its row keeps the
    -- expired lease, and verify_outbox reports it.
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts o
      WHERE o.outbox_id = p.outbox_id
        AND o.phase = 'OPEN'
        AND NOT EXISTS (
          SELECT FROM orchestration.payment_outbox_attempts c
          WHERE c.outbox_id = o.outbox_id AND c.attempt_no = o.attempt_no AND c.phase = 'CLOSE'
        )
      OFFSET 0
    );
END
$$;

ALTER FUNCTION orchestration.close_dead_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_dead_attempts FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.pick_due_items(
  p_now timestamptz,
  p_limit bigint,
  p_after_due timestamptz,
  p_after_id uuid,
  p_stopped_participants text[],
  p_stopped_rails text[],
  OUT picked uuid[],
  OUT dead uuid[],
  OUT last_due timestamptz,
  OUT last_id uuid,
  OUT passed_over bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
-- enable_seqscan, enable_bitmapscan and enable_sort are off, and plan_cache_mode is
-- force_generic_plan, because only a scan of the index in its own order reads no more rows than it
-- returns. The planner must choose it whatever the statistics say.
-- Locks the first free rows after a position, those due longest first. `dead` is the part of
-- `picked` whose lease has expired or whose item has ended. `passed_over` counts the rows that the
-- scan read and did not pick.
-- The function is slightly over 70 lines because its settings and result columns take 25.
DECLARE
  v_met bigint;
BEGIN
  v_met := pg_stat_get_xact_tuples_fetched(
    'orchestration.ix_payment_outbox_pending_next_attempt_at_outbox_id'::regclass);
  WITH found AS MATERIALIZED (
    SELECT p.outbox_id, p.next_attempt_at,
           p.lease_token IS NOT NULL OR EXISTS (
             SELECT FROM orchestration.payment_outbox_attempts t
             WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
             OFFSET 0
           ) AS dead
    FROM orchestration.payment_outbox_pending p
    WHERE p.next_attempt_at <= p_now
      AND (p.next_attempt_at, p.outbox_id) > (p_after_due, p_after_id)
      AND (p.lease_expires_at IS NULL OR p.lease_expires_at <= p_now)
      AND (p_stopped_participants IS NULL OR p.participant_id <> ALL (p_stopped_participants))
      AND (p_stopped_rails IS NULL OR p.rail_type <> ALL (p_stopped_rails))
      -- A row without a lease that has used all its attempts cannot be claimed. The guards prevent
      -- such a row, and verify_outbox reports it.
      AND (
        p.attempt_count = 0
        OR p.lease_token IS NOT NULL
        OR p.attempt_count < (
          SELECT i.max_attempts
          FROM orchestration.payment_outbox_items i
          WHERE i.outbox_id = p.outbox_id
        )
        OR EXISTS (
          SELECT FROM orchestration.payment_outbox_attempts t
          WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
          OFFSET 0
        )
      )
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(f.outbox_id),
         array_agg(f.outbox_id) FILTER (WHERE f.dead),
         (array_agg(f.next_attempt_at))[count(*)],
         (array_agg(f.outbox_id))[count(*)]
  INTO picked, dead, last_due, last_id
  FROM found f;
  -- The counter exists while track_counts is on, its default.
  passed_over := pg_stat_get_xact_tuples_fetched(
      'orchestration.ix_payment_outbox_pending_next_attempt_at_outbox_id'::regclass)
    - v_met - coalesce(cardinality(picked), 0);
END
$$;

ALTER FUNCTION orchestration.pick_due_items OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.pick_due_items FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.set_leases_apart(
  p_now timestamptz,
  p_last_due timestamptz,
  p_limit bigint
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
-- enable_seqscan, enable_bitmapscan and enable_sort are off because only a scan of the index in its
-- own order reads no more rows than it returns. The session keeps the first plan, which may have
-- been made while the table was empty.
-- Sets next_attempt_at to the end of the lease in leased rows that a claim has passed over, up to
-- p_last_due. Until then no claim reads these rows again.
DECLARE
  v_leased uuid[];
BEGIN
  WITH found AS MATERIALIZED (
    SELECT p.outbox_id
    FROM orchestration.payment_outbox_pending p
    WHERE p.next_attempt_at <= p_last_due AND p.lease_expires_at > p_now
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(f.outbox_id) INTO v_leased FROM found f;
  UPDATE orchestration.payment_outbox_pending p
  SET next_attempt_at = p.lease_expires_at
  WHERE p.outbox_id = ANY (v_leased) AND p.lease_expires_at > p_now;
END
$$;

ALTER FUNCTION orchestration.set_leases_apart OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.set_leases_apart FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.claim_outbox_batch(
  p_worker_id text,
  p_batch_size bigint,
  p_lease interval,
  p_max_bytes bigint DEFAULT 16777216
) RETURNS SETOF orchestration.payment_outbox_claimed
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- plan_cache_mode is force_generic_plan because planning each call again costs more than a small
-- claim.
-- The function is long because the pick, the budget and the lease must share one transaction and
-- one order.
DECLARE
  v_now timestamptz := clock_timestamp();
  v_lease interval;
  v_stopped_participants text[];
  v_stopped_rails text[];
  v_found record;
  v_after_due timestamptz := '-infinity';
  v_after_id uuid := '00000000-0000-0000-0000-000000000000';
  v_free uuid[];
  v_claimed uuid[] := '{}';
  v_full boolean := false;
  v_passed_over bigint := 0;
BEGIN
  IF octet_length(p_worker_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'payment_outbox_pending', ARRAY['claimed_by'], ARRAY[p_worker_id]
    );
  END IF;
  -- Compare and add the lease in seconds. PostgreSQL takes a month as 30 days when it compares
  -- intervals, but follows the calendar when it adds them, and a day can have 23 hours.
  IF coalesce(p_worker_id, '') = ''
    OR (p_batch_size BETWEEN 1 AND 10000) IS NOT TRUE
    OR (extract(epoch FROM p_lease) BETWEEN 1 AND 86400) IS NOT TRUE
    OR (p_max_bytes BETWEEN 1 AND 1073741824) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023',
      'p_worker_id must not be empty, and p_batch_size must be 1 to 10,000, p_lease 1 second to 1 day,'
        ' p_max_bytes 1 byte to 1 GiB',
      'payment_outbox_pending',
      jsonb_build_object('worker_id', p_worker_id, 'batch_size', p_batch_size,
        'lease', p_lease::text, 'max_bytes', p_max_bytes),
      'Pass values within these bounds.'
    );
  END IF;
  v_lease := make_interval(secs => extract(epoch FROM p_lease)::float8);
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.refuse_if_killed('DISPATCH');
  -- Leave out the items of stopped participants and rails. stopped_targets is planned at every
  -- call, which costs as much as a small claim, so it is called only if such a switch was ever
  -- used.
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.scope = 'PARTICIPANT') THEN
    v_stopped_participants := orchestration.stopped_targets('PARTICIPANT');
  END IF;
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.scope = 'RAIL') THEN
    v_stopped_rails := orchestration.stopped_targets('RAIL');
  END IF;
  -- An item that this claim ends is not part of the batch. The loop picks again until the batch is
  -- full or no other item is due and free.
  LOOP
    SELECT f.* INTO v_found
    FROM orchestration.pick_due_items(
      v_now, p_batch_size - cardinality(v_claimed), v_after_due, v_after_id,
      v_stopped_participants, v_stopped_rails
    ) f;
    v_passed_over := v_passed_over + v_found.passed_over;
    v_full := coalesce(cardinality(v_found.picked), 0) = p_batch_size - cardinality(v_claimed);
    EXIT WHEN v_found.picked IS NULL;
    v_free := v_found.picked;
    IF v_found.dead IS NOT NULL THEN
      PERFORM orchestration.close_dead_attempts(v_found.dead);
      SELECT array_agg(f.outbox_id ORDER BY f.ord)
      INTO v_free
      FROM unnest(v_found.picked) WITH ORDINALITY AS f (outbox_id, ord)
      CROSS JOIN LATERAL (
        SELECT p.attempt_count
        FROM orchestration.payment_outbox_pending p
        WHERE p.outbox_id = f.outbox_id AND p.lease_token IS NULL
        OFFSET 0
      ) p
      CROSS JOIN LATERAL (
        SELECT
        FROM orchestration.payment_outbox_items i
        WHERE i.outbox_id = f.outbox_id AND i.max_attempts > p.attempt_count
        OFFSET 0
      ) i;
    END IF;
    v_claimed := v_claimed || v_free;
    EXIT WHEN NOT v_full OR cardinality(v_claimed) = p_batch_size;
    v_after_due := v_found.last_due;
    v_after_id := v_found.last_id;
  END LOOP;
  -- Passing over a few leased rows costs less than moving them.
  IF v_passed_over > 1000 THEN
    PERFORM orchestration.set_leases_apart(
      v_now, CASE WHEN v_full THEN v_found.last_due ELSE v_now END, 1000);
  END IF;
  IF v_claimed = '{}' THEN
    RETURN;
  END IF;
  -- Items beyond the budget stay due. The first item is returned even if it exceeds the budget.
  IF cardinality(v_claimed) > 1 THEN
    SELECT array_agg(s.outbox_id)
    INTO v_claimed
    FROM (
      SELECT c.outbox_id,
             row_number() OVER (ORDER BY c.ord) AS number,
             sum(i.octets) OVER (ORDER BY c.ord) AS octets
      FROM unnest(v_claimed) WITH ORDINALITY AS c (outbox_id, ord)
      CROSS JOIN LATERAL (
        SELECT octet_length(i.payload::text)
                 + coalesce(octet_length(i.context::text), 0) AS octets
        FROM orchestration.payment_outbox_items i
        WHERE i.outbox_id = c.outbox_id
        OFFSET 0
      ) i
    ) s
    WHERE s.number = 1 OR s.octets <= p_max_bytes;
  END IF;
  v_now := clock_timestamp();
  -- No index covers the columns that this update changes, so the new row version stays on its page.
  WITH taken AS MATERIALIZED (
    UPDATE orchestration.payment_outbox_pending p
    SET attempt_count = p.attempt_count + 1,
        claimed_by = p_worker_id,
        lease_token = gen_random_uuid(),
        lease_expires_at = v_now + v_lease
    WHERE p.outbox_id = ANY (v_claimed) AND p.lease_token IS NULL
    RETURNING p.outbox_id, p.next_attempt_at, p.attempt_count, p.lease_token
  ), opened AS (
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, lease_token, worker_id, claimed_at
    )
    SELECT t.outbox_id, t.attempt_count, 'OPEN', 'DISPATCHING', t.lease_token, p_worker_id, v_now
    FROM taken t
  )
  SELECT array_agg(t.outbox_id ORDER BY t.next_attempt_at, t.outbox_id)
  INTO v_claimed
  FROM taken t;
  RETURN QUERY
  SELECT c.*
  FROM unnest(v_claimed) WITH ORDINALITY AS t (outbox_id, ordinality)
  CROSS JOIN LATERAL (
    SELECT c.*
    FROM orchestration.payment_outbox_claimed c
    WHERE c.outbox_id = t.outbox_id
    OFFSET 0
  ) c
  ORDER BY t.ordinality;
END
$$;

ALTER FUNCTION orchestration.claim_outbox_batch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.claim_outbox_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.claim_outbox_batch TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.renew_outbox_lease(
  p_outbox_id uuid,
  p_lease_token uuid,
  p_worker_id text,
  p_lease interval
) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_now timestamptz;
  v_expires_at timestamptz;
BEGIN
  IF octet_length(p_worker_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'payment_outbox_pending', ARRAY['claimed_by'], ARRAY[p_worker_id]
    );
  END IF;
  -- Checked and added in seconds: the length of a day or a month depends on the date and time zone.
  IF (extract(epoch FROM p_lease) BETWEEN 1 AND 86400) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_lease must be between 1 second and 1 day',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'lease', p_lease::text),
      'Pass an interval within these bounds.', 'lease_expires_at'
    );
  END IF;
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = p_outbox_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- A transaction that waits for this lock may hold a gate, so the lock must not stay with a client
  -- that has stopped.
  PERFORM orchestration.bound_idle_time();
  PERFORM 1
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id
  FOR UPDATE;
  v_now := clock_timestamp();
  UPDATE orchestration.payment_outbox_pending p
  SET lease_expires_at = v_now + make_interval(secs => extract(epoch FROM p_lease)::float8)
  WHERE p.outbox_id = p_outbox_id
    AND p.lease_token = p_lease_token
    AND p.claimed_by = p_worker_id
    AND p.lease_expires_at > v_now
  RETURNING p.lease_expires_at INTO v_expires_at;
  IF v_expires_at IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-002', 'P7002', 'this worker no longer holds the lease',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', p_worker_id),
      'Stop working on the item: another worker may have it now.', 'lease_token'
    );
  END IF;
  RETURN v_expires_at;
END
$$;

ALTER FUNCTION orchestration.renew_outbox_lease OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.renew_outbox_lease FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.renew_outbox_lease TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.complete_outbox_attempt(
  p_completions jsonb,
  p_partial boolean DEFAULT false
) RETURNS TABLE (
  outbox_id uuid,
  state text,
  error_sqlstate text,
  error_message text,
  error_detail jsonb,
  error_hint text,
  replayed boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
#variable_conflict use_column
-- p_partial: if false, a lost lease rejects the whole call; if true, its row reports it.
-- The function is long because it closes the whole batch in one order of locks, and answers lost
-- leases and replays per element.
DECLARE
  v_completions orchestration.outbox_completion[];
  v_now timestamptz;
  v_ended uuid[];
  v_retried uuid[];
  v_delays jsonb;
  v_bad record;
BEGIN
  IF jsonb_typeof(p_completions) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_completions) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_completions must be an array of 0 to 10,000 objects',
      'payment_outbox_attempts', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_completions) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_completions must be at most 64 MiB',
      'payment_outbox_attempts', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_completions := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.outbox_completion, p_completions) AS r
    );
    SELECT t.ordinality, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN octet_length(r.worker_id) > 1000 THEN 'worker_id'
               WHEN octet_length(r.state) > 1000 THEN 'state'
               WHEN octet_length(r.outcome) > 1000 THEN 'outcome'
               WHEN octet_length(r.rail_reference) > 1000 THEN 'rail_reference'
               WHEN octet_length(r.rail_code) > 1000 THEN 'rail_code'
               WHEN octet_length(r.error_code) > 1000 THEN 'error_code'
               WHEN octet_length(r.error_message) > 4000 THEN 'error_message'
             END AS malformed
      FROM unnest(v_completions) WITH ORDINALITY AS r
    ) t
    WHERE t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('payment_outbox_attempts', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'payment_outbox_attempts', v_bad.ordinality, NULL, v_bad.malformed
    );
  END IF;
  IF p_partial IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_partial must not be null', 'payment_outbox_attempts', '{}',
      'Pass true or false.'
    );
  END IF;
  -- Compare seconds, as claim_outbox_batch does.
  SELECT r.outbox_id, r.retry_in INTO v_bad
  FROM unnest(v_completions) AS r
  WHERE extract(epoch FROM r.retry_in) NOT BETWEEN 0 AND 36525 * 86400.0
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'retry_in must be between 0 and 36,525 days',
      'payment_outbox_attempts',
      jsonb_build_object('outbox_id', v_bad.outbox_id, 'retry_in', v_bad.retry_in::text),
      'Pass a delay within these bounds.'
    );
  END IF;
  SELECT r.outbox_id INTO v_bad
  FROM unnest(v_completions) AS r
  WHERE r.state = 'FAILED' AND r.outcome IS NULL
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-003', '22023', 'a FAILED completion requires an outcome',
      'payment_outbox_attempts', jsonb_build_object('outbox_id', v_bad.outbox_id),
      'Pass REJECTED, NOT_SENT, or UNKNOWN if nobody knows what the rail did.', 'outcome'
    );
  END IF;
  -- A transaction that waits for the locks below may hold a gate.
  PERFORM orchestration.bound_idle_time();
  -- The trigger `unresolved` locks the instruction of an item that ends as FAILED, and instructions
  -- must be locked before pending rows. Nobody without the lease token can move the item meanwhile,
  -- so attempt_count is current.
  PERFORM 1
  FROM (
    SELECT DISTINCT p.instruction_id
    FROM unnest(v_completions) AS r
    CROSS JOIN LATERAL (
      SELECT p.instruction_id, p.attempt_count
      FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = r.outbox_id AND p.lease_token = r.lease_token
      OFFSET 0
    ) p
    CROSS JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = r.outbox_id
      OFFSET 0
    ) i
    WHERE r.state = 'FAILED' OR r.state = 'RETRYABLE' AND p.attempt_count >= i.max_attempts
    ORDER BY p.instruction_id
    OFFSET 0
  ) r
  CROSS JOIN LATERAL (
    SELECT 1
    FROM orchestration.instructions n
    WHERE n.id = r.instruction_id
    FOR NO KEY UPDATE
  ) n;
  PERFORM 1
  FROM (
    SELECT DISTINCT r.outbox_id
    FROM unnest(v_completions) AS r
    ORDER BY r.outbox_id
    OFFSET 0
  ) r
  CROSS JOIN LATERAL (
    SELECT 1
    FROM orchestration.payment_outbox_pending p
    WHERE p.outbox_id = r.outbox_id
    FOR UPDATE
  ) p;
  v_now := clock_timestamp();
  -- Close the attempts before the pending rows change: the guard checks an attempt against its
  -- lease.
  WITH first AS MATERIALIZED (
    SELECT DISTINCT ON (r.outbox_id) r.*
    FROM unnest(v_completions) WITH ORDINALITY AS r
    ORDER BY r.outbox_id, r.ordinality
  ), accepted AS MATERIALIZED (
    SELECT f.*, p.attempt_count, o.claimed_at,
           f.state = 'RETRYABLE' AND p.attempt_count >= i.max_attempts AS at_ceiling,
           -- NOT_SENT is about this attempt only. If an earlier attempt has no reported outcome, it
           -- may have sent the payment.
           CASE
             WHEN f.outcome = 'NOT_SENT' AND p.attempt_count > 1 AND EXISTS (
               SELECT FROM orchestration.payment_outbox_attempts a
               WHERE a.outbox_id = f.outbox_id
                 AND a.phase = 'CLOSE'
                 AND coalesce(a.outcome, 'UNKNOWN') = 'UNKNOWN'
               OFFSET 0
             ) THEN 'UNKNOWN'
             ELSE coalesce(f.outcome, 'UNKNOWN')
           END AS final_outcome
    FROM first f
    CROSS JOIN LATERAL (
      SELECT p.attempt_count
      FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = f.outbox_id
        AND p.lease_token = f.lease_token
        AND p.claimed_by = f.worker_id
        AND p.lease_expires_at > v_now
      OFFSET 0
    ) p
    CROSS JOIN LATERAL (
      SELECT o.claimed_at
      FROM orchestration.payment_outbox_attempts o
      WHERE o.outbox_id = f.outbox_id AND o.attempt_no = p.attempt_count AND o.phase = 'OPEN'
      OFFSET 0
    ) o
    LEFT JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE f.state = 'RETRYABLE' AND i.outbox_id = f.outbox_id
      OFFSET 0
    ) i ON true
  ), closed AS (
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, outcome, requested_state, requested_error_code,
      lease_token, worker_id, claimed_at, completed_at,
      rail_reference, rail_code, error_code, error_message, latency_ms
    )
    SELECT a.outbox_id, a.attempt_count, 'CLOSE',
           CASE WHEN a.at_ceiling THEN 'FAILED' ELSE a.state END,
           CASE WHEN a.at_ceiling OR a.state = 'FAILED' THEN a.final_outcome ELSE a.outcome END,
           a.state, a.error_code,
           a.lease_token, a.worker_id, a.claimed_at, v_now,
           a.rail_reference, a.rail_code,
           CASE WHEN a.at_ceiling THEN 'RETRY_CEILING_EXCEEDED' ELSE a.error_code END,
           a.error_message, a.latency_ms
    FROM accepted a
    RETURNING outbox_id, state
  )
  SELECT array_agg(c.outbox_id) FILTER (WHERE c.state <> 'RETRYABLE'),
         array_agg(c.outbox_id) FILTER (WHERE c.state = 'RETRYABLE')
  INTO v_ended, v_retried
  FROM closed c;
  DELETE FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = ANY (v_ended);
  IF v_retried IS NOT NULL THEN
    SELECT jsonb_object_agg(f.outbox_id, coalesce(extract(epoch FROM f.retry_in), 0))
    INTO v_delays
    FROM (
      SELECT DISTINCT ON (r.outbox_id) r.outbox_id, r.retry_in
      FROM unnest(v_completions) WITH ORDINALITY AS r
      ORDER BY r.outbox_id, r.ordinality
    ) f;
    UPDATE orchestration.payment_outbox_pending p
    SET next_attempt_at = v_now
          + make_interval(secs => (v_delays ->> p.outbox_id::text)::float8),
        claimed_by = NULL,
        lease_token = NULL,
        lease_expires_at = NULL
    WHERE p.outbox_id = ANY (v_retried);
  END IF;

  -- A completion counts as recorded if an attempt was closed with its token and the same content,
  -- by this call or before. If this call has closed all of them, no look-up is needed.
  IF coalesce(cardinality(v_ended), 0) + coalesce(cardinality(v_retried), 0)
    < jsonb_array_length(p_completions) THEN
    FOR v_bad IN
      SELECT r.outbox_id, r.worker_id,
             EXISTS (
               SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = r.outbox_id
             ) AS known
      FROM unnest(v_completions) WITH ORDINALITY AS r
      WHERE NOT EXISTS (
        SELECT FROM orchestration.payment_outbox_attempts c
        WHERE c.outbox_id = r.outbox_id
          AND c.phase = 'CLOSE'
          AND c.lease_token = r.lease_token
          AND c.worker_id = r.worker_id
          AND (c.requested_state, c.requested_error_code, c.rail_reference)
            IS NOT DISTINCT FROM (r.state, r.error_code, r.rail_reference)
        OFFSET 0
      )
      ORDER BY r.ordinality
    LOOP
      IF NOT v_bad.known THEN
        PERFORM orchestration.raise_invariant(
          'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
          jsonb_build_object('outbox_id', v_bad.outbox_id), 'Check the id.', 'outbox_id'
        );
      END IF;
      IF NOT p_partial THEN
        PERFORM orchestration.raise_invariant(
          'INV-OUT-002', 'P7002', 'this worker no longer holds the lease',
          'payment_outbox_pending',
          jsonb_build_object('outbox_id', v_bad.outbox_id, 'worker_id', v_bad.worker_id),
          'Record the answer of the rail with record_late_result.', 'lease_token'
        );
      END IF;
    END LOOP;
  END IF;
  RETURN QUERY
  SELECT r.outbox_id, c.state,
         CASE WHEN c.state IS NULL THEN 'P7002' END,
         CASE WHEN c.state IS NULL
           THEN 'INV-OUT-002: this worker no longer holds the lease' END,
         CASE WHEN c.state IS NULL
           THEN jsonb_build_object('outbox_id', r.outbox_id, 'worker_id', r.worker_id) END,
         CASE WHEN c.state IS NULL
           THEN 'Record the answer of the rail with record_late_result.' END,
         -- This call closed its attempts at v_now, so any other time means a replay.
         coalesce(c.completed_at <> v_now, false)
  FROM unnest(v_completions) WITH ORDINALITY AS r
  LEFT JOIN LATERAL (
    SELECT c.state, c.completed_at
    FROM orchestration.payment_outbox_attempts c
    WHERE c.outbox_id = r.outbox_id
      AND c.phase = 'CLOSE'
      AND c.lease_token = r.lease_token
      AND c.worker_id = r.worker_id
      AND (c.requested_state, c.requested_error_code, c.rail_reference)
        IS NOT DISTINCT FROM (r.state, r.error_code, r.rail_reference)
    OFFSET 0
  ) c ON true
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.complete_outbox_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.complete_outbox_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.complete_outbox_attempt TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.repair_expired_leases(p_limit bigint DEFAULT 1000)
RETURNS TABLE (outbox_id uuid, attempt_no integer, state text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_stale uuid[];
BEGIN
  IF (p_limit BETWEEN 0 AND 10000) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_limit must be between 0 and 10,000', 'payment_outbox_pending',
      jsonb_build_object('limit', p_limit), 'Pass a limit within these bounds.'
    );
  END IF;
  -- A transaction that waits for these locks may hold a gate, so the locks must not stay with a
  -- client that has stopped.
  PERFORM orchestration.bound_idle_time();
  WITH picked AS MATERIALIZED (
    SELECT p.outbox_id
    FROM orchestration.payment_outbox_pending p
    -- No lease ends before next_attempt_at, so items scheduled for later are not read.
    WHERE p.next_attempt_at <= v_now AND p.lease_expires_at <= v_now
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(k.outbox_id) INTO v_stale FROM picked k;
  RETURN QUERY
  SELECT a.outbox_id, a.attempt_no, a.state
  FROM orchestration.close_dead_attempts(v_stale) a;
END
$$;

ALTER FUNCTION orchestration.repair_expired_leases OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.repair_expired_leases FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.repair_expired_leases
TO symphony_executor, symphony_control
"""
    )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.payment_outbox_items) THEN
    RAISE EXCEPTION 'payment_outbox_items contains evidence; '
      'to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.repair_expired_leases")
    op.execute("DROP FUNCTION orchestration.complete_outbox_attempt")
    op.execute("DROP FUNCTION orchestration.renew_outbox_lease")
    op.execute("DROP FUNCTION orchestration.claim_outbox_batch")
    op.execute("DROP FUNCTION orchestration.set_leases_apart")
    op.execute("DROP FUNCTION orchestration.pick_due_items")
    op.execute("DROP FUNCTION orchestration.close_dead_attempts")
    op.execute("DROP FUNCTION orchestration.enqueue_payment_outbox")
    op.execute("DROP TYPE orchestration.outbox_completion")
    op.execute("DROP TYPE orchestration.new_outbox_item")
    op.execute("DROP VIEW orchestration.payment_outbox_item_result")
    op.execute("DROP VIEW orchestration.payment_outbox_item_summary")
    op.execute("DROP VIEW orchestration.payment_outbox_claimed")
    op.execute("DROP VIEW orchestration.payment_outbox_depth")
    op.drop_table("payment_outbox_attempts", schema="orchestration")
    op.drop_table("payment_outbox_pending", schema="orchestration")
    op.drop_table("payment_outbox_items", schema="orchestration")
    op.drop_table("participant_outbox_sequences", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_outbox_attempts")
    op.execute("DROP FUNCTION orchestration.guard_outbox_pending_delete")
    op.execute("DROP FUNCTION orchestration.guard_outbox_pending_update")
    op.execute("DROP FUNCTION orchestration.guard_outbox_pending_insert")
    op.execute("DROP FUNCTION orchestration.guard_outbox_items")
    op.execute("DROP FUNCTION orchestration.record_redrive")
    op.execute("DROP FUNCTION orchestration.advance_outbox_sequences")
    op.execute("DROP FUNCTION orchestration.fill_outbox_item")
    op.execute("DROP FUNCTION orchestration.bump_participant_outbox_seq")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0008'")
    op.execute("RESET ROLE")
