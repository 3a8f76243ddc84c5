"""Create what follows an attempt: late results, interventions, redrives and the instruction's end.

Serves: INV-OUT-006, INV-OUT-010, INV-OUT-011, INV-INS-006, INV-APP-001, INV-AUD-001, INV-API-001,
INV-API-002.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    create_tables()
    create_views()
    create_guards()
    create_triggers()
    create_functions()
    op.execute("UPDATE orchestration.schema_revision SET revision = '0010'")
    op.execute("RESET ROLE")


def create_tables() -> None:
    op.create_table(
        "payment_outbox_late_results",
        sa.Column("outbox_id", sa.Uuid(), nullable=False),
        sa.Column("result_no", sa.Integer(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("rail_reference", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("recorded_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("instruction_version", sa.Integer(), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("result_no >= 1", name=op.f("ck_payment_outbox_late_results_result_no")),
        sa.CheckConstraint(
            "CASE source"
            " WHEN 'WORKER' THEN lease_token IS NOT NULL AND reason IS NULL"
            " WHEN 'RECONCILIATION' THEN lease_token IS NULL AND reason IS NOT NULL"
            " ELSE false END",
            name=op.f("ck_payment_outbox_late_results_source"),
        ),
        sa.CheckConstraint(
            "outcome IN ('SENT', 'REJECTED', 'NOT_SENT')",
            name=op.f("ck_payment_outbox_late_results_outcome"),
        ),
        sa.CheckConstraint(
            "octet_length(rail_reference) >= 1 AND octet_length(rail_reference) <= 1000",
            name=op.f("ck_payment_outbox_late_results_rail_reference"),
        ),
        sa.CheckConstraint(
            "octet_length(reason) >= 1 AND octet_length(reason) <= 4000",
            name=op.f("ck_payment_outbox_late_results_reason"),
        ),
        sa.CheckConstraint(
            "octet_length(recorded_by) >= 1 AND octet_length(recorded_by) <= 1000",
            name=op.f("ck_payment_outbox_late_results_recorded_by"),
        ),
        sa.CheckConstraint(
            "extract(year FROM recorded_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_payment_outbox_late_results_years"),
        ),
        sa.PrimaryKeyConstraint(
            "outbox_id", "result_no", name=op.f("pk_payment_outbox_late_results")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_payment_outbox_late_results_xact_id"),
        "payment_outbox_late_results",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.payment_outbox_late_results
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.create_table(
        "payment_outbox_interventions",
        sa.Column("outbox_id", sa.Uuid(), nullable=False),
        sa.Column("intervention_no", sa.Integer(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=True),
        sa.Column("result_no", sa.Integer(), nullable=True),
        sa.Column("time_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("time_after", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("acted_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("acted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "intervention_no >= 1", name=op.f("ck_payment_outbox_interventions_intervention_no")
        ),
        sa.CheckConstraint(
            "CASE action"
            " WHEN 'CANCEL' THEN attempt_no IS NOT NULL"
            " AND num_nonnulls(result_no, time_before, time_after) = 0"
            " WHEN 'RESCHEDULE' THEN num_nonnulls(attempt_no, result_no) = 0"
            " AND num_nulls(time_before, time_after) = 0"
            " WHEN 'EXPIRE_LEASE' THEN result_no IS NULL"
            " AND num_nulls(attempt_no, time_before, time_after) = 0"
            " WHEN 'CLOSE_CONTRADICTION' THEN result_no IS NOT NULL"
            " AND num_nonnulls(attempt_no, time_before, time_after) = 0"
            " ELSE false END",
            name=op.f("ck_payment_outbox_interventions_action"),
        ),
        sa.CheckConstraint(
            "octet_length(reason) >= 1 AND octet_length(reason) <= 4000",
            name=op.f("ck_payment_outbox_interventions_reason"),
        ),
        sa.CheckConstraint(
            "octet_length(acted_by) >= 1 AND octet_length(acted_by) <= 1000",
            name=op.f("ck_payment_outbox_interventions_acted_by"),
        ),
        sa.CheckConstraint(
            "extract(year FROM acted_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_payment_outbox_interventions_years"),
        ),
        sa.PrimaryKeyConstraint(
            "outbox_id", "intervention_no", name=op.f("pk_payment_outbox_interventions")
        ),
        schema="orchestration",
    )
    op.create_index(
        "uq_payment_outbox_interventions_closed",
        "payment_outbox_interventions",
        ["outbox_id", "result_no"],
        unique=True,
        schema="orchestration",
        postgresql_where=sa.text("action = 'CLOSE_CONTRADICTION'"),
    )
    op.create_index(
        op.f("ix_payment_outbox_interventions_xact_id"),
        "payment_outbox_interventions",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.payment_outbox_interventions
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )


def create_views() -> None:
    op.execute(
        """
CREATE VIEW orchestration.payment_outbox_status
WITH (security_barrier = true)
AS
SELECT i.outbox_id,
       i.instruction_id,
       i.participant_id,
       i.sequence_id,
       i.idempotency_key,
       i.redrive_no,
       i.redrive_of,
       i.rail_type,
       i.payload_hash,
       i.max_attempts,
       i.created_at,
       CASE
         WHEN t.state IS NOT NULL THEN t.state
         WHEN p.lease_token IS NOT NULL THEN 'DISPATCHING'
         WHEN p.outbox_id IS NOT NULL THEN 'PENDING'
       END AS state,
       t.outcome,
       coalesce(t.attempt_no, p.attempt_count) AS attempt_count,
       p.next_attempt_at,
       p.claimed_by,
       p.lease_expires_at,
       t.completed_at,
       t.rail_reference,
       t.error_code,
       CASE
         WHEN t.state IS NULL THEN NULL
         WHEN l.source = 'RECONCILIATION' THEN l.outcome
         WHEN t.state = 'DISPATCHED' THEN 'SENT'
         -- A worker reported SENT after the attempt had failed. The outcome is unknown until
         -- control resolves it.
         WHEN l.source = 'WORKER' THEN 'UNKNOWN'
         ELSE t.outcome
       END AS known_outcome
FROM orchestration.payment_outbox_items i
LEFT JOIN orchestration.payment_outbox_pending p ON p.outbox_id = i.outbox_id
LEFT JOIN orchestration.payment_outbox_attempts t
  ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
LEFT JOIN LATERAL (
  -- The newest result that counts: a reconciliation of the last attempt, or SENT for any attempt.
  SELECT l.source, l.outcome
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = t.outbox_id
    AND (l.outcome = 'SENT' OR l.source = 'RECONCILIATION' AND l.attempt_no = t.attempt_no)
  ORDER BY l.result_no DESC
  LIMIT 1
) l ON true;

ALTER VIEW orchestration.payment_outbox_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- LATERAL with OFFSET 0 keeps these index look-ups. A plain join would read the whole of
-- payment_outbox_status, because conditions are not pushed down into a security_barrier view.
CREATE VIEW orchestration.payment_outbox_unresolved
WITH (security_invoker = true)
AS
SELECT s.outbox_id,
       s.instruction_id,
       s.participant_id,
       s.idempotency_key,
       s.redrive_no,
       s.rail_type,
       n.end_to_end_id,
       n.amount_minor,
       n.currency,
       n.state AS instruction_state,
       s.attempt_count AS attempt_no,
       s.completed_at AS since,
       s.error_code,
       w.outcome AS reported_outcome,
       coalesce(w.rail_reference, s.rail_reference) AS rail_reference
FROM orchestration.instruction_status n
CROSS JOIN LATERAL (
  SELECT s.*
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = n.id AND s.known_outcome = 'UNKNOWN'
  OFFSET 0
) s
LEFT JOIN LATERAL (
  SELECT l.outcome, l.rail_reference
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = s.outbox_id AND l.source = 'WORKER'
  ORDER BY l.result_no DESC
  LIMIT 1
) w ON true
WHERE n.unresolved > 0;

ALTER VIEW orchestration.payment_outbox_unresolved OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_unresolved
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.payment_outbox_contradictions
WITH (security_invoker = true)
AS
SELECT l.outbox_id,
       l.result_no,
       s.instruction_id,
       s.participant_id,
       s.idempotency_key,
       s.redrive_no,
       s.rail_type,
       n.end_to_end_id,
       n.amount_minor,
       n.currency,
       n.state AS instruction_state,
       l.attempt_no,
       l.source,
       l.outcome,
       l.rail_reference,
       l.recorded_by,
       l.recorded_at AS since,
       c.contradicts
FROM orchestration.payment_outbox_late_results l
CROSS JOIN LATERAL (
  SELECT s.*
  FROM orchestration.payment_outbox_status s
  WHERE s.outbox_id = l.outbox_id
  OFFSET 0
) s
CROSS JOIN LATERAL (
  SELECT n.*
  FROM orchestration.instruction_status n
  WHERE n.id = s.instruction_id
  OFFSET 0
) n
CROSS JOIN LATERAL (
  SELECT CASE
    WHEN EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts a
      WHERE a.outbox_id = l.outbox_id
        AND a.phase = 'CLOSE'
        AND CASE l.outcome
          WHEN 'SENT' THEN a.outcome IN ('REJECTED', 'NOT_SENT')
            AND (a.attempt_no = l.attempt_no OR a.state = 'FAILED')
          ELSE a.state = 'DISPATCHED' AND a.attempt_no = l.attempt_no
        END
    ) THEN 'ATTEMPT'
    WHEN EXISTS (
      SELECT FROM orchestration.payment_outbox_late_results e
      WHERE e.outbox_id = l.outbox_id
        AND e.result_no < l.result_no
        AND (e.outcome = 'SENT') <> (l.outcome = 'SENT')
        AND (e.attempt_no = l.attempt_no
          OR l.outcome = 'SENT' AND e.source = 'RECONCILIATION'
          OR e.outcome = 'SENT' AND l.source = 'RECONCILIATION')
    ) THEN 'LATE_RESULT'
    WHEN l.outcome = 'SENT' AND EXISTS (
      SELECT FROM orchestration.payment_outbox_status o
      WHERE o.instruction_id = s.instruction_id
        AND o.idempotency_key = s.idempotency_key
        AND (o.redrive_no > s.redrive_no
          OR o.redrive_no < s.redrive_no AND o.known_outcome = 'SENT')
    ) THEN 'REDRIVE'
    WHEN l.outcome = 'SENT' AND n.state = 'FAILED' THEN 'INSTRUCTION'
  END AS contradicts
) c
WHERE c.contradicts IS NOT NULL
  AND NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = l.outbox_id
      AND v.result_no = l.result_no
      AND v.action = 'CLOSE_CONTRADICTION'
  );

ALTER VIEW orchestration.payment_outbox_contradictions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_contradictions
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_late_result_result
WITH (security_invoker = true)
AS
SELECT l.*, false AS replayed
FROM orchestration.payment_outbox_late_results l;

ALTER VIEW orchestration.payment_outbox_late_result_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_intervention_result
WITH (security_invoker = true)
AS
SELECT v.*, false AS replayed
FROM orchestration.payment_outbox_interventions v;

ALTER VIEW orchestration.payment_outbox_intervention_result OWNER TO symphony_owner
"""
    )


def create_guards() -> None:
    op.execute(
        """
CREATE FUNCTION orchestration.lock_outbox_item(p_outbox_id uuid)
RETURNS SETOF orchestration.payment_outbox_items
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Locks the instruction before the pending row, as all functions do, so that they cannot deadlock.
-- The UPDATEs change nothing, but they raise 40001 in a transaction with an older snapshot that
-- enqueues, redrives, completes or ends the instruction.
DECLARE
  v_item orchestration.payment_outbox_items;
BEGIN
  SELECT i.* INTO v_item
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p_outbox_id;
  IF v_item.outbox_id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- A transaction that waits for these locks may hold a gate, so the locks must not stay with a
  -- client that has stopped.
  PERFORM orchestration.bound_idle_time();
  UPDATE orchestration.instructions n
  SET unresolved = n.unresolved
  WHERE n.id = v_item.instruction_id;
  UPDATE orchestration.payment_outbox_pending p
  SET attempt_count = p.attempt_count
  WHERE p.outbox_id = p_outbox_id;
  RETURN NEXT v_item;
END
$$;

ALTER FUNCTION orchestration.lock_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_outbox_item FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_unresolved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_unknown bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied items and late results may arrive later. verify_outbox compares the count with
    -- them.
    RETURN NULL;
  END IF;
  SELECT count(*) INTO v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = NEW.id AND s.known_outcome = 'UNKNOWN';
  IF NEW.unresolved <> v_unknown THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-010', 'P7404', 'unresolved must equal the number of items whose outcome is UNKNOWN',
      'instructions',
      jsonb_build_object('id', NEW.id, 'unresolved', NEW.unresolved, 'unknown', v_unknown),
      'Leave unresolved out: the database counts. Use resolve_outbox_item to resolve an item.',
      'unresolved'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_unresolved OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_unresolved FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.count_unresolved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction_id uuid;
  v_unknown integer;
BEGIN
  IF TG_TABLE_NAME = 'payment_outbox_attempts' THEN
    -- A transaction that records a late result first updates the pending row, which this
    -- transaction has locked. So either this look-up finds the late result, or the other
    -- transaction continues after this one and counts this attempt.
    IF NEW.outcome <> 'UNKNOWN' AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_late_results l WHERE l.outbox_id = NEW.outbox_id
    ) THEN
      RETURN NULL;
    END IF;
  END IF;
  SELECT i.instruction_id INTO v_instruction_id
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = NEW.outbox_id;
  PERFORM 1
  FROM orchestration.instructions n
  WHERE n.id = v_instruction_id
  FOR NO KEY UPDATE;
  SELECT count(*) INTO v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = v_instruction_id AND s.known_outcome = 'UNKNOWN';
  UPDATE orchestration.instructions n
  SET unresolved = v_unknown
  WHERE n.id = v_instruction_id;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.count_unresolved OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.count_unresolved FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_late_result() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_lease_token uuid;
  v_next integer;
  v_detail jsonb;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- The attempt may come later: verify_outbox finds a result of no attempt.
    RETURN NEW;
  END IF;
  v_detail := jsonb_build_object('outbox_id', NEW.outbox_id, 'attempt_no', NEW.attempt_no);
  SELECT o.lease_token INTO v_lease_token
  FROM orchestration.payment_outbox_attempts o
  WHERE o.outbox_id = NEW.outbox_id AND o.attempt_no = NEW.attempt_no AND o.phase = 'OPEN';
  IF v_lease_token IS NULL
    OR NEW.source = 'RECONCILIATION' AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts c
      WHERE c.outbox_id = NEW.outbox_id AND c.attempt_no = NEW.attempt_no AND c.phase = 'CLOSE'
    ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7005', 'a late result belongs to an attempt that was opened, a reconciliation to one that was closed',
      'payment_outbox_late_results', v_detail,
      'Read payment_outbox_attempts. Reconcile an open attempt after its worker or repair closed it.',
      'attempt_no'
    );
  END IF;
  IF NEW.source = 'WORKER' AND NEW.lease_token IS DISTINCT FROM v_lease_token THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7002', 'the token is not the token of this attempt',
      'payment_outbox_late_results', v_detail,
      'A worker records what its own attempt did, under the token that the claim returned.',
      'lease_token'
    );
  END IF;
  IF NOT v_replica THEN
    PERFORM orchestration.lock_outbox_item(NEW.outbox_id);
    SELECT coalesce(max(l.result_no), 0) + 1 INTO v_next
    FROM orchestration.payment_outbox_late_results l
    WHERE l.outbox_id = NEW.outbox_id;
    IF NEW.result_no > v_next THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-011', '22023', 'result_no does not follow the last result of the item',
        'payment_outbox_late_results',
        v_detail || jsonb_build_object('result_no', NEW.result_no, 'expected', v_next),
        'Leave result_no out: the database sets it.', 'result_no'
      );
    END IF;
    NEW.result_no := coalesce(NEW.result_no, v_next);
    NEW.instruction_version := (
      SELECT n.version
      FROM orchestration.payment_outbox_items i
      JOIN orchestration.instructions n ON n.id = i.instruction_id
      WHERE i.outbox_id = NEW.outbox_id
    );
    NEW.recorded_at := clock_timestamp();
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_late_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_late_result FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.fill_intervention() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  NEW.intervention_no := coalesce(
    NEW.intervention_no,
    (SELECT max(v.intervention_no)
     FROM orchestration.payment_outbox_interventions v
     WHERE v.outbox_id = NEW.outbox_id) + 1,
    1
  );
  NEW.acted_at := clock_timestamp();
  NEW.db_user := SESSION_USER;
  NEW.xact_id := pg_current_xact_id()::text::bigint;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.fill_intervention OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fill_intervention FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_outbox_act() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- Argument of the trigger: the column that numbers the rows of an item. What a worker records is no
-- act of governance.
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT coalesce(n.entered ->> 'action', 'RESOLVE') AS act,
         TG_TABLE_NAME,
         jsonb_object_agg(
           (n.entered ->> 'outbox_id') || '/' || (n.entered ->> TG_ARGV[0]), n.entered - 'xact_id')
  FROM (SELECT to_jsonb(i) AS entered FROM inserted i) n
  WHERE n.entered ->> 'source' IS DISTINCT FROM 'WORKER'
  GROUP BY act
  ORDER BY act;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_outbox_act OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_outbox_act FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_intervention() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the action. The functions record an intervention before they act; what the
-- owner changes by hand is recorded here, without a reason.
DECLARE
  v_intervention orchestration.payment_outbox_interventions;
  v_newest orchestration.payment_outbox_interventions;
BEGIN
  v_intervention.outbox_id := NEW.outbox_id;
  v_intervention.action := TG_ARGV[0];
  CASE TG_ARGV[0]
    WHEN 'CANCEL' THEN
      v_intervention.attempt_no := NEW.attempt_no;
    WHEN 'RESCHEDULE' THEN
      v_intervention.time_before := OLD.next_attempt_at;
      v_intervention.time_after := NEW.next_attempt_at;
    WHEN 'EXPIRE_LEASE' THEN
      v_intervention.attempt_no := NEW.attempt_count;
      v_intervention.time_before := OLD.lease_expires_at;
      v_intervention.time_after := NEW.lease_expires_at;
  END CASE;
  SELECT v.* INTO v_newest
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = NEW.outbox_id
  ORDER BY v.intervention_no DESC
  LIMIT 1;
  IF (v_newest.xact_id, v_newest.action, v_newest.attempt_no, v_newest.time_before,
      v_newest.time_after)
    IS DISTINCT FROM (pg_current_xact_id()::text::bigint, v_intervention.action,
      v_intervention.attempt_no, v_intervention.time_before, v_intervention.time_after) THEN
    INSERT INTO orchestration.payment_outbox_interventions (
      outbox_id, action, attempt_no, time_before, time_after
    )
    VALUES (
      v_intervention.outbox_id, v_intervention.action, v_intervention.attempt_no,
      v_intervention.time_before, v_intervention.time_after
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_intervention OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_intervention FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_redrive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_copy orchestration.payment_outbox_items;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The initial copy of a subscription loads rows in no order. verify_outbox finds a redrive that
    -- has no predecessor.
    RETURN NULL;
  END IF;
  -- A transaction that records a late result updates the instruction, so the look-up below sees the
  -- newest result.
  PERFORM 1
  FROM orchestration.instructions n
  WHERE n.id = NEW.instruction_id
  FOR SHARE;
  SELECT i.* INTO v_copy
  FROM orchestration.payment_outbox_items i
  CROSS JOIN LATERAL (
    SELECT s.state, s.known_outcome
    FROM orchestration.payment_outbox_status s
    WHERE s.outbox_id = i.outbox_id
    OFFSET 0
  ) s
  WHERE i.outbox_id = NEW.redrive_of
    AND s.state = 'FAILED'
    AND s.known_outcome IN ('REJECTED', 'NOT_SENT');
  -- These columns may differ. All others must be those of the predecessor, also columns that are
  -- added later.
  v_copy.outbox_id := NEW.outbox_id;
  v_copy.sequence_id := NEW.sequence_id;
  v_copy.redrive_no := v_copy.redrive_no + 1;
  v_copy.redrive_of := NEW.redrive_of;
  v_copy.created_at := NEW.created_at;
  v_copy.db_user := NEW.db_user;
  v_copy.xact_id := NEW.xact_id;
  IF v_copy IS DISTINCT FROM NEW THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005',
      'a redrive must copy a FAILED item with the outcome REJECTED or NOT_SENT',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', NEW.outbox_id, 'redrive_no', NEW.redrive_no),
      'Use redrive_outbox_item. If the outcome is UNKNOWN, resolve the item first.', 'redrive_of'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_redrive OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_redrive FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_instruction_end() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- No item of the instruction is pending here: the foreign key of payment_outbox_pending, whose
-- trigger fires before this one, has rejected an instruction that has one.
DECLARE
  v_sent bigint;
  v_unknown bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied items and attempts may arrive later. verify_outbox reports an end that
    -- contradicts them.
    RETURN NULL;
  END IF;
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    -- A concurrent enqueue or completion that this snapshot does not see has updated the
    -- participant's row or deleted a pending row. Locking these rows then raises 40001.
    PERFORM 1
    FROM orchestration.participant_outbox_sequences s
    WHERE s.participant_id = OLD.participant_id
    FOR SHARE;
    IF NOT FOUND THEN
      -- A participant's row that is newer than the snapshot is not visible either, but the INSERT
      -- conflicts with it and raises 40001.
      INSERT INTO orchestration.participant_outbox_sequences (participant_id)
      VALUES (OLD.participant_id)
      ON CONFLICT (participant_id) DO NOTHING;
    END IF;
    PERFORM 1
    FROM orchestration.payment_outbox_pending p
    WHERE p.instruction_id = OLD.id
    ORDER BY p.outbox_id
    FOR KEY SHARE;
  END IF;
  SELECT count(*) FILTER (WHERE s.state = 'DISPATCHED' OR s.known_outcome = 'SENT'),
         count(*) FILTER (WHERE s.known_outcome = 'UNKNOWN')
  INTO v_sent, v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = OLD.id;
  IF NEW.state = 'COMPLETED' AND v_sent = 0
    OR NEW.state = 'FAILED' AND v_sent + v_unknown > 0 THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      CASE
        WHEN NEW.state = 'COMPLETED'
          THEN 'state cannot become COMPLETED: no item was DISPATCHED or resolved as SENT'
        WHEN v_sent > 0
          THEN 'state cannot become FAILED: an item was DISPATCHED or resolved as SENT'
        ELSE 'state cannot become FAILED: the outcome of an item is UNKNOWN'
      END,
      'instructions',
      jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state,
        'sent', v_sent, 'unknown', v_unknown),
      CASE WHEN v_unknown > 0
        THEN 'Find out what the rail did, then use resolve_outbox_item. payment_outbox_unresolved'
          ' lists the items.'
        ELSE 'Check the items of the instruction in payment_outbox_status.'
      END, 'state'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_instruction_end OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction_end FROM PUBLIC
"""
    )


def create_triggers() -> None:
    op.execute(
        """
CREATE TRIGGER guard_end AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.state IN ('COMPLETED', 'FAILED') AND NEW.state <> OLD.state)
EXECUTE FUNCTION orchestration.guard_instruction_end();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_end
"""
    )
    op.execute(
        """
CREATE TRIGGER guard_unresolved_insert AFTER INSERT ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.unresolved <> 0)
EXECUTE FUNCTION orchestration.guard_unresolved();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_unresolved_insert
"""
    )
    op.execute(
        """
CREATE TRIGGER guard_unresolved_update AFTER UPDATE ON orchestration.instructions
FOR EACH ROW
WHEN (NEW.unresolved IS DISTINCT FROM OLD.unresolved)
EXECUTE FUNCTION orchestration.guard_unresolved();
ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard_unresolved_update
"""
    )
    op.execute(
        """
CREATE TRIGGER guard_redrive AFTER INSERT ON orchestration.payment_outbox_items
FOR EACH ROW
WHEN (NEW.redrive_no > 0)
EXECUTE FUNCTION orchestration.guard_redrive();
ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER guard_redrive
"""
    )
    op.execute(
        """
-- These are row triggers because their conditions are rarely true, and a row trigger whose
-- condition is false costs a claim or completion almost nothing.
CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_attempts
FOR EACH ROW
WHEN (NEW.state = 'FAILED')
EXECUTE FUNCTION orchestration.count_unresolved()
"""
    )
    op.execute(
        """
CREATE TRIGGER cancelled AFTER INSERT ON orchestration.payment_outbox_attempts
FOR EACH ROW
WHEN (NEW.state = 'FAILED' AND NEW.error_code = 'CANCELLED' AND NEW.requested_state IS NULL)
EXECUTE FUNCTION orchestration.record_intervention('CANCEL')
"""
    )
    op.execute(
        """
CREATE TRIGGER rescheduled AFTER UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.lease_token IS NULL
  AND NEW.lease_token IS NULL
  AND OLD.next_attempt_at <> NEW.next_attempt_at
)
EXECUTE FUNCTION orchestration.record_intervention('RESCHEDULE')
"""
    )
    op.execute(
        """
CREATE TRIGGER lease_expired AFTER UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.lease_token = NEW.lease_token
  AND OLD.lease_expires_at > NEW.lease_expires_at
  AND NEW.lease_expires_at <= clock_timestamp()
)
EXECUTE FUNCTION orchestration.record_intervention('EXPIRE_LEASE')
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_late_result();
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.count_unresolved()
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_late_results
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('result_no')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'outbox_id', 'result_no');
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_late_results
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_interventions
FOR EACH ROW EXECUTE FUNCTION orchestration.fill_intervention()
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_interventions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('intervention_no')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_interventions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'outbox_id', 'intervention_no');
ALTER TABLE orchestration.payment_outbox_interventions ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_interventions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_interventions ENABLE ALWAYS TRIGGER no_truncate
"""
    )


def create_functions() -> None:
    op.execute(
        """
CREATE FUNCTION orchestration.record_worker_result(
  p_outbox_id uuid,
  p_attempt_no integer,
  p_lease_token uuid,
  p_worker_id text,
  p_outcome text,
  p_rail_reference text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_result orchestration.payment_outbox_late_results;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['recorded_by', 'outcome', 'rail_reference'],
    ARRAY[p_worker_id, p_outcome, p_rail_reference]
  );
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts o
    WHERE o.outbox_id = p_outbox_id
      AND o.attempt_no = p_attempt_no
      AND o.phase = 'OPEN'
      AND o.lease_token = p_lease_token
      AND o.worker_id = p_worker_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7002', 'the token is not the token of this worker''s attempt',
      'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id, 'attempt_no', p_attempt_no,
        'worker_id', p_worker_id),
      'Pass the attempt, the worker and the lease token that the claim returned.',
      'lease_token'
    );
  END IF;
  SELECT l.* INTO v_result
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = p_outbox_id
    AND l.attempt_no = p_attempt_no
    AND l.source = 'WORKER'
    AND l.outcome = p_outcome
    AND l.rail_reference IS NOT DISTINCT FROM p_rail_reference
    AND l.db_user = SESSION_USER
  ORDER BY l.result_no DESC
  LIMIT 1;
  IF v_result.outbox_id IS NULL THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_late_results AS l (
      outbox_id, attempt_no, source, outcome, rail_reference, lease_token, recorded_by
    )
    VALUES (
      p_outbox_id, p_attempt_no, 'WORKER', p_outcome, p_rail_reference, p_lease_token, p_worker_id
    )
    RETURNING l.* INTO v_result;
  END IF;
  RETURN QUERY
  SELECT v_result.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.record_worker_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_worker_result FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_worker_result TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.resolve_outbox_item(
  p_outbox_id uuid,
  p_outcome text,
  p_reason text,
  p_resolved_by text DEFAULT NULL,
  p_rail_reference text DEFAULT NULL,
  p_attempt_no integer DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- p_attempt_no: the attempt that the result is about. By default it is the attempt that ended the
-- item.
DECLARE
  v_result orchestration.payment_outbox_late_results;
  v_attempt_no integer := p_attempt_no;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['recorded_by', 'outcome', 'rail_reference'],
    ARRAY[p_resolved_by, p_outcome, p_rail_reference]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id),
      'State how the outcome was found.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF v_attempt_no IS NULL THEN
    SELECT t.attempt_no INTO v_attempt_no
    FROM orchestration.payment_outbox_attempts t
    WHERE t.outbox_id = p_outbox_id AND t.state IN ('DISPATCHED', 'FAILED');
    IF v_attempt_no IS NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-011', 'P7005', 'the item has not ended', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', p_outbox_id),
        'Wait until it ends, cancel it, or pass the attempt that the result is about.', 'attempt_no'
      );
    END IF;
  END IF;
  -- Only the newest result counts, so only a repetition of the newest result is a replay.
  SELECT l.* INTO v_result
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = p_outbox_id
  ORDER BY l.result_no DESC
  LIMIT 1;
  IF (v_result.source, v_result.attempt_no, v_result.outcome, v_result.reason,
      v_result.rail_reference, v_result.recorded_by, v_result.db_user)
    IS DISTINCT FROM ('RECONCILIATION', v_attempt_no, p_outcome, p_reason,
      p_rail_reference, coalesce(p_resolved_by, SESSION_USER::text), SESSION_USER::text) THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_late_results AS l (
      outbox_id, attempt_no, source, outcome, rail_reference, reason, recorded_by
    )
    VALUES (
      p_outbox_id, v_attempt_no, 'RECONCILIATION', p_outcome, p_rail_reference, p_reason,
      coalesce(p_resolved_by, SESSION_USER::text)
    )
    RETURNING l.* INTO v_result;
  END IF;
  RETURN QUERY
  SELECT v_result.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.resolve_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.resolve_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.resolve_outbox_item TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_late_result(
  p_outbox_id uuid,
  p_attempt_no integer,
  p_outcome text,
  p_lease_token uuid DEFAULT NULL,
  p_rail_reference text DEFAULT NULL,
  p_reason text DEFAULT NULL,
  p_recorded_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- With a token, the worker records the result of its own attempt. Without a token, a caller who can
-- execute resolve_outbox_item records a reconciliation. The function runs with the rights of its
-- caller, so control gets 42501 if it passes the token of a worker.
BEGIN
  IF p_lease_token IS NOT NULL OR NOT has_function_privilege(
    'orchestration.resolve_outbox_item(uuid, text, text, text, text, integer)', 'EXECUTE'
  ) THEN
    RETURN QUERY
    SELECT w.*
    FROM orchestration.record_worker_result(
      p_outbox_id, p_attempt_no, p_lease_token, p_recorded_by, p_outcome, p_rail_reference
    ) w;
  ELSE
    RETURN QUERY
    SELECT r.*
    FROM orchestration.resolve_outbox_item(
      p_outbox_id, p_outcome, p_reason, p_recorded_by, p_rail_reference, p_attempt_no
    ) r;
  END IF;
END
$$;

ALTER FUNCTION orchestration.record_late_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_late_result FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_late_result TO symphony_executor, symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.cancel_outbox_item(
  p_outbox_id uuid,
  p_reason text,
  p_cancelled_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because a cancellation opens and closes an attempt, so that the item ends
-- like any other.
DECLARE
  v_by text := coalesce(p_cancelled_by, SESSION_USER::text);
  v_token uuid := gen_random_uuid();
  v_now timestamptz;
  v_pending orchestration.payment_outbox_pending;
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['acted_by'], ARRAY[v_by]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id), 'State why the item is cancelled.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  IF v_pending.lease_token IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005', 'the item is claimed: its worker may be sending it',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', v_pending.claimed_by),
      'Wait for the worker. If it has stopped, end its lease; repair_expired_leases then closes the'
      ' attempt, and an item that has attempts left can be cancelled.',
      'lease_token'
    );
  ELSIF v_pending.outbox_id IS NULL THEN
    SELECT v.* INTO v_intervention
    FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = p_outbox_id
      AND v.action = 'CANCEL'
      AND v.reason = p_reason
      AND v.acted_by = v_by
      AND v.db_user = SESSION_USER;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-005', 'P7005', 'the item has ended', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', p_outbox_id),
        'Do not cancel it: payment_outbox_status shows how it ended.', 'outbox_id'
      );
    END IF;
  ELSE
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, attempt_no, reason, acted_by
    )
    VALUES (p_outbox_id, 'CANCEL', v_pending.attempt_count + 1, p_reason, v_by)
    RETURNING v.* INTO v_intervention;
    v_now := clock_timestamp();
    UPDATE orchestration.payment_outbox_pending p
    SET attempt_count = p.attempt_count + 1,
        claimed_by = v_by,
        lease_token = v_token,
        lease_expires_at = v_now + interval '1 minute'
    WHERE p.outbox_id = p_outbox_id;
    -- One statement opens and closes the attempt, so that the kill switch sees that nothing is
    -- dispatched.
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, outcome, lease_token, worker_id, claimed_at,
      completed_at, error_code, error_message
    )
    VALUES
      (p_outbox_id, v_pending.attempt_count + 1, 'OPEN', 'DISPATCHING', NULL, v_token, v_by, v_now,
       NULL, NULL, NULL),
      (p_outbox_id, v_pending.attempt_count + 1, 'CLOSE', 'FAILED',
       -- If an earlier attempt has no reported outcome, it may have sent the payment.
       CASE WHEN EXISTS (
         SELECT FROM orchestration.payment_outbox_attempts a
         WHERE a.outbox_id = p_outbox_id
           AND a.phase = 'CLOSE'
           AND coalesce(a.outcome, 'UNKNOWN') = 'UNKNOWN'
       ) THEN 'UNKNOWN' ELSE 'NOT_SENT' END,
       v_token, v_by, v_now, v_now, 'CANCELLED', p_reason);
    DELETE FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = p_outbox_id;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.cancel_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.cancel_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.cancel_outbox_item TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.reschedule_outbox_item(
  p_outbox_id uuid,
  p_due_at timestamptz
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_pending orchestration.payment_outbox_pending;
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  IF (isfinite(p_due_at) AND p_due_at <= clock_timestamp() + interval '400 days') IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_due_at must be a time at most 400 days ahead',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'due_at', p_due_at),
      'Pass an earlier time.', 'next_attempt_at'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  IF v_pending.outbox_id IS NULL OR v_pending.lease_token IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005',
      CASE WHEN v_pending.outbox_id IS NULL THEN 'the item has ended' ELSE 'the item is claimed' END,
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', v_pending.claimed_by),
      'Only an item that waits for its next attempt can be rescheduled.', 'next_attempt_at'
    );
  END IF;
  SELECT v.* INTO v_intervention
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = p_outbox_id
    AND v.action = 'RESCHEDULE'
    AND v.time_after = p_due_at
    AND v.db_user = SESSION_USER
  ORDER BY v.intervention_no DESC
  LIMIT 1;
  IF v_intervention.outbox_id IS NULL OR v_pending.next_attempt_at <> p_due_at THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, time_before, time_after
    )
    VALUES (p_outbox_id, 'RESCHEDULE', v_pending.next_attempt_at, p_due_at)
    RETURNING v.* INTO v_intervention;
    UPDATE orchestration.payment_outbox_pending p
    SET next_attempt_at = p_due_at
    WHERE p.outbox_id = p_outbox_id;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.reschedule_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.reschedule_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.reschedule_outbox_item TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.expire_outbox_lease(
  p_outbox_id uuid,
  p_reason text,
  p_expired_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it also finds the record of an earlier call, for a replay.
DECLARE
  v_by text := coalesce(p_expired_by, SESSION_USER::text);
  v_now timestamptz;
  v_pending orchestration.payment_outbox_pending;
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['acted_by'], ARRAY[v_by]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id), 'State why the lease is ended.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  v_now := clock_timestamp();
  IF v_pending.lease_expires_at > v_now THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, attempt_no, time_before, time_after, reason, acted_by
    )
    VALUES (
      p_outbox_id, 'EXPIRE_LEASE', v_pending.attempt_count, v_pending.lease_expires_at, v_now,
      p_reason, v_by
    )
    RETURNING v.* INTO v_intervention;
    UPDATE orchestration.payment_outbox_pending p
    SET lease_expires_at = v_now,
        -- A claim may have moved the row to the end of its lease, and claims and repairs look only
        -- at rows up to now.
        next_attempt_at = least(p.next_attempt_at, v_now)
    WHERE p.outbox_id = p_outbox_id;
  ELSE
    -- The first call ended the lease of the newest attempt, unless the item was claimed again.
    SELECT v.* INTO v_intervention
    FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = p_outbox_id
      AND v.action = 'EXPIRE_LEASE'
      AND v.attempt_no = (
        SELECT max(a.attempt_no)
        FROM orchestration.payment_outbox_attempts a
        WHERE a.outbox_id = p_outbox_id
      )
      AND v.reason = p_reason
      AND v.acted_by = v_by
      AND v.db_user = SESSION_USER;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'the item has no live lease',
        'payment_outbox_pending',
        jsonb_build_object('outbox_id', p_outbox_id),
        'payment_outbox_status shows whether the item waits, has ended or has an expired lease.',
        'lease_expires_at'
      );
    END IF;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.expire_outbox_lease OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.expire_outbox_lease FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.expire_outbox_lease TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.close_contradiction(
  p_outbox_id uuid,
  p_result_no integer,
  p_reason text,
  p_closed_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_by text := coalesce(p_closed_by, SESSION_USER::text);
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['acted_by'], ARRAY[v_by]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'State what was found and done.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_late_results l
    WHERE l.outbox_id = p_outbox_id AND l.result_no = p_result_no
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the late result does not exist', 'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'Check outbox_id and result_no: payment_outbox_contradictions shows them.', 'result_no'
    );
  END IF;
  SELECT v.* INTO v_intervention
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = p_outbox_id
    AND v.action = 'CLOSE_CONTRADICTION'
    AND v.result_no = p_result_no;
  IF NOT FOUND AND EXISTS (
    SELECT FROM orchestration.payment_outbox_contradictions c
    WHERE c.outbox_id = p_outbox_id AND c.result_no = p_result_no
  ) THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, result_no, reason, acted_by
    )
    VALUES (p_outbox_id, 'CLOSE_CONTRADICTION', p_result_no, p_reason, v_by)
    RETURNING v.* INTO v_intervention;
  ELSIF (v_intervention.reason, v_intervention.acted_by, v_intervention.db_user)
    IS DISTINCT FROM (p_reason, v_by, SESSION_USER::text) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7005',
      CASE WHEN v_intervention.outbox_id IS NULL
        THEN 'the late result contradicts nothing' ELSE 'the contradiction was already closed' END,
      'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'payment_outbox_contradictions shows what can be closed.', 'result_no'
    );
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.close_contradiction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_contradiction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.close_contradiction TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.redrive_outbox_item(p_outbox_id uuid)
RETURNS SETOF orchestration.payment_outbox_item_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it must lock the instruction, the participant and the pending row in
-- this order before it can decide between a redrive, a replay and a refusal.
DECLARE
  v_item orchestration.payment_outbox_items;
  v_newest orchestration.payment_outbox_items;
  v_state text;
  v_open boolean;
  v_unresolved integer;
  v_outcome text;
  v_sequence_id bigint;
  v_result orchestration.payment_outbox_item_result;
  v_replayed boolean := true;
BEGIN
  SELECT i.* INTO v_item
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p_outbox_id;
  IF v_item.outbox_id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- Lock the instruction before the participant's row, as enqueue_payment_outbox does.
  SELECT i.state, i.open, i.unresolved INTO v_state, v_open, v_unresolved
  FROM orchestration.instructions i
  WHERE i.id = v_item.instruction_id
  FOR SHARE;
  IF NOT v_open THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      format('the instruction must be AUTHORIZED or EXECUTING, but is %s', v_state),
      'instructions',
      jsonb_build_object('id', v_item.instruction_id, 'state', v_state,
        'outbox_id', p_outbox_id),
      'If the instruction has ended, receive a new instruction.', 'state'
    );
  END IF;
  -- The lock on the participant's row makes redrives of one item wait for each other.
  v_sequence_id := orchestration.bump_participant_outbox_seq(v_item.participant_id);
  SELECT i.* INTO v_newest
  FROM orchestration.payment_outbox_items i
  WHERE i.instruction_id = v_item.instruction_id AND i.idempotency_key = v_item.idempotency_key
  ORDER BY i.redrive_no DESC
  LIMIT 1;
  -- Under an older snapshot a finished item would look live. Its pending row was deleted since, so
  -- the lock raises 40001.
  PERFORM 1
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = v_newest.outbox_id
  FOR UPDATE;
  SELECT t.state, s.known_outcome INTO v_state, v_outcome
  FROM orchestration.payment_outbox_attempts t
  CROSS JOIN LATERAL (
    SELECT s.known_outcome
    FROM orchestration.payment_outbox_status s
    WHERE s.outbox_id = t.outbox_id
    OFFSET 0
  ) s
  WHERE t.outbox_id = v_newest.outbox_id AND t.state IN ('DISPATCHED', 'FAILED');
  IF v_newest.outbox_id = p_outbox_id
    AND v_state = 'FAILED' AND v_outcome IN ('REJECTED', 'NOT_SENT') THEN
    IF v_unresolved > 0 THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is unknown',
        'instructions',
        jsonb_build_object('id', v_item.instruction_id, 'unresolved', v_unresolved,
          'outbox_id', p_outbox_id),
        'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows it.',
        'unresolved'
      );
    END IF;
    v_replayed := false;
    -- Copy the whole row, so that no content column can be forgotten. guard_redrive names the same
    -- columns as different.
    v_newest := v_item;
    v_newest.outbox_id := orchestration.uuid_v7();
    v_newest.sequence_id := v_sequence_id;
    v_newest.redrive_no := v_item.redrive_no + 1;
    v_newest.redrive_of := v_item.outbox_id;
    v_newest.created_at := clock_timestamp();
    v_newest.db_user := SESSION_USER;
    v_newest.xact_id := pg_current_xact_id()::text::bigint;
    WITH stored AS (
      INSERT INTO orchestration.payment_outbox_items
      SELECT v_newest.*
    )
    INSERT INTO orchestration.payment_outbox_pending (
      outbox_id, instruction_id, participant_id, sequence_id, rail_type
    )
    VALUES (
      v_newest.outbox_id, v_newest.instruction_id, v_newest.participant_id, v_newest.sequence_id,
      v_newest.rail_type
    );
  ELSIF v_newest.outbox_id = p_outbox_id OR v_state IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005', 'only a FAILED item with the outcome REJECTED or NOT_SENT can be redriven',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id, 'newest', v_newest.outbox_id,
        'state', coalesce(v_state, 'PENDING'), 'outcome', v_outcome),
      'Redrive the newest item of the key after it is known that the payment was not made.',
      'outbox_id'
    );
  END IF;
  SELECT r.* INTO v_result
  FROM orchestration.payment_outbox_item_result r
  WHERE r.outbox_id = v_newest.outbox_id;
  v_result.replayed := v_replayed;
  RETURN NEXT v_result;
END
$$;

ALTER FUNCTION orchestration.redrive_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.redrive_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.redrive_outbox_item TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.verify_outbox()
RETURNS TABLE (finding text, outbox_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  -- The function is long because each finding is a query of its own. Together in one statement, all
  -- of them read the same snapshot.
  SELECT 'LOST: the item has neither a pending row nor a terminal attempt',
         i.outbox_id, i.participant_id, '{}'::jsonb
  FROM orchestration.payment_outbox_items i
  WHERE NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = i.outbox_id)
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED'))
  UNION ALL
  SELECT 'TWICE: the item has a pending row and a terminal attempt', p.outbox_id, p.participant_id,
         jsonb_build_object('state', t.state)
  FROM orchestration.payment_outbox_pending p
  JOIN orchestration.payment_outbox_attempts t
    ON t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
  UNION ALL
  SELECT 'STRANGER: the pending row differs from its item', p.outbox_id, p.participant_id, '{}'
  FROM orchestration.payment_outbox_pending p
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i
    WHERE (i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.rail_type)
      = (p.outbox_id, p.instruction_id, p.participant_id, p.sequence_id, p.rail_type))
  UNION ALL
  SELECT 'UNAUTHORIZED: the item is pending, but its instruction is not AUTHORIZED or EXECUTING',
         p.outbox_id, p.participant_id,
         jsonb_build_object('instruction_id', p.instruction_id)
  FROM orchestration.payment_outbox_pending p
  WHERE NOT EXISTS (
    SELECT FROM orchestration.instructions n
    WHERE n.id = p.instruction_id AND n.participant_id = p.participant_id AND n.open)
  UNION ALL
  SELECT 'ENDED: the state of the instruction contradicts the outcomes of its items',
         NULL, n.participant_id,
         jsonb_build_object('instruction_id', n.id, 'state', n.state, 'sent', t.sent,
           'unknown', t.unknown)
  FROM orchestration.instructions n
  CROSS JOIN LATERAL (
    -- Only results that were known when the instruction ended count here. A later result is a
    -- contradiction, which payment_outbox_contradictions shows.
    SELECT count(*) FILTER (WHERE t.state = 'DISPATCHED'
             OR l.source = 'RECONCILIATION' AND l.outcome = 'SENT') AS sent,
           count(*) FILTER (WHERE t.state = 'FAILED'
             AND (l.source = 'WORKER' OR l.source IS NULL AND t.outcome = 'UNKNOWN')) AS unknown
    FROM orchestration.payment_outbox_items i
    JOIN orchestration.payment_outbox_attempts t
      ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
    LEFT JOIN LATERAL (
      SELECT l.source, l.outcome
      FROM orchestration.payment_outbox_late_results l
      WHERE l.outbox_id = t.outbox_id
        AND l.instruction_version < n.version
        AND (l.outcome = 'SENT' OR l.source = 'RECONCILIATION' AND l.attempt_no = t.attempt_no)
      ORDER BY l.result_no DESC
      LIMIT 1
    ) l ON true
    WHERE i.instruction_id = n.id
  ) t
  WHERE n.state = 'COMPLETED' AND t.sent = 0
    OR n.state = 'FAILED' AND t.sent + t.unknown > 0
  UNION ALL
  SELECT 'UNRESOLVED: unresolved is not the number of items whose outcome is UNKNOWN', NULL,
         n.participant_id,
         jsonb_build_object('instruction_id', n.id, 'unresolved', n.unresolved,
           'unknown', coalesce(u.items, 0))
  FROM orchestration.instructions n
  LEFT JOIN (
    SELECT s.instruction_id, count(*) AS items
    FROM orchestration.payment_outbox_status s
    WHERE s.known_outcome = 'UNKNOWN'
    GROUP BY s.instruction_id
  ) u ON u.instruction_id = n.id
  WHERE n.unresolved <> coalesce(u.items, 0)
  UNION ALL
  SELECT 'LATE: the late result has no attempt, or is a worker''s under a different lease',
         l.outbox_id, NULL,
         jsonb_build_object('result_no', l.result_no, 'attempt_no', l.attempt_no)
  FROM orchestration.payment_outbox_late_results l
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts o
    WHERE (o.outbox_id, o.attempt_no, o.phase) = (l.outbox_id, l.attempt_no, 'OPEN')
      AND (l.source = 'RECONCILIATION' OR l.lease_token = o.lease_token))
  UNION ALL
  SELECT 'INTERVENTION: the item of the intervention does not exist', v.outbox_id, NULL,
         jsonb_build_object('intervention_no', v.intervention_no, 'action', v.action)
  FROM orchestration.payment_outbox_interventions v
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = v.outbox_id)
  UNION ALL
  SELECT 'CANCELLED: no intervention records who cancelled the item', a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no)
  FROM orchestration.payment_outbox_attempts a
  WHERE a.state = 'FAILED'
    AND a.error_code = 'CANCELLED'
    AND a.requested_state IS NULL
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_interventions v
      WHERE v.outbox_id = a.outbox_id AND v.action = 'CANCEL')
  UNION ALL
  SELECT 'ORPHAN: the item of the attempt does not exist', a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no, 'phase', a.phase)
  FROM orchestration.payment_outbox_attempts a
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = a.outbox_id)
  UNION ALL
  SELECT 'ATTEMPTS: the openings and closings of the item do not match', a.outbox_id, NULL,
         jsonb_build_object('openings', a.openings, 'closings', a.closings,
           'attempt_count', a.attempt_count)
  FROM (
    SELECT coalesce(a.outbox_id, p.outbox_id) AS outbox_id,
           coalesce(a.openings, 0) AS openings,
           coalesce(a.closings, 0) AS closings,
           coalesce(a.last, 0) AS last,
           p.attempt_count,
           (p.lease_token IS NOT NULL)::integer AS leased
    FROM orchestration.payment_outbox_pending p
    FULL JOIN (
      SELECT a.outbox_id,
             count(*) FILTER (WHERE a.phase = 'OPEN') AS openings,
             count(*) FILTER (WHERE a.phase = 'CLOSE') AS closings,
             max(a.attempt_no) AS last
      FROM orchestration.payment_outbox_attempts a
      GROUP BY a.outbox_id
    ) a ON a.outbox_id = p.outbox_id
  ) a
  WHERE a.openings <> a.last
    OR a.closings <> a.last - a.leased
    OR coalesce(a.attempt_count, a.last) <> a.last
  UNION ALL
  SELECT 'ATTEMPT: the attempt is past max_attempts, after the terminal one, or closed under a'
           ' different lease',
         a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no, 'phase', a.phase)
  FROM orchestration.payment_outbox_attempts a
  JOIN orchestration.payment_outbox_items i ON i.outbox_id = a.outbox_id
  LEFT JOIN orchestration.payment_outbox_attempts o
    ON (o.outbox_id, o.attempt_no, o.phase) = (a.outbox_id, a.attempt_no, 'OPEN')
  LEFT JOIN orchestration.payment_outbox_attempts t
    ON t.outbox_id = a.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
  WHERE a.attempt_no > least(i.max_attempts, t.attempt_no)
    OR (a.lease_token, a.worker_id, a.claimed_at) <> (o.lease_token, o.worker_id, o.claimed_at)
  UNION ALL
  SELECT 'REDRIVE: the redriven item is missing, differs, or did not end REJECTED or NOT_SENT',
         i.outbox_id, i.participant_id, jsonb_build_object('redrive_of', i.redrive_of)
  FROM orchestration.payment_outbox_items i
  WHERE i.redrive_no > 0
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items f
      JOIN orchestration.payment_outbox_attempts t ON t.outbox_id = f.outbox_id
      WHERE f.outbox_id = i.redrive_of
        AND (f.instruction_id, f.participant_id, f.idempotency_key, f.redrive_no, f.rail_type,
            f.payload_hash, f.max_attempts)
          = (i.instruction_id, i.participant_id, i.idempotency_key, i.redrive_no - 1, i.rail_type,
            i.payload_hash, i.max_attempts)
        AND t.state = 'FAILED'
        AND (t.outcome IN ('REJECTED', 'NOT_SENT')
          OR EXISTS (
            SELECT FROM orchestration.payment_outbox_late_results l
            WHERE l.outbox_id = f.outbox_id
              AND l.source = 'RECONCILIATION'
              AND l.outcome IN ('REJECTED', 'NOT_SENT'))))
  UNION ALL
  SELECT 'SPENT: the item waits for an attempt, but has used all of them',
         p.outbox_id, p.participant_id,
         jsonb_build_object('attempt_count', p.attempt_count, 'max_attempts', i.max_attempts)
  FROM orchestration.payment_outbox_pending p
  JOIN orchestration.payment_outbox_items i ON i.outbox_id = p.outbox_id
  WHERE p.lease_token IS NULL AND p.attempt_count >= i.max_attempts
  UNION ALL
  SELECT 'SEQUENCE: sequence_id has a gap, or next_sequence_id is not the last one plus 1',
         NULL, s.participant_id,
         jsonb_build_object('next_sequence_id', s.next_sequence_id, 'items', s.items,
           'last', s.last)
  FROM (
    SELECT coalesce(s.participant_id, i.participant_id) AS participant_id,
           s.next_sequence_id, coalesce(i.items, 0) AS items, coalesce(i.last, 0) AS last
    FROM orchestration.participant_outbox_sequences s
    FULL JOIN (
      SELECT i.participant_id, count(*) AS items, max(i.sequence_id) AS last
      FROM orchestration.payment_outbox_items i
      GROUP BY i.participant_id
    ) i ON i.participant_id = s.participant_id
  ) s
  WHERE s.items <> s.last OR s.next_sequence_id IS DISTINCT FROM s.last + 1
$$;

ALTER FUNCTION orchestration.verify_outbox OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_outbox TO symphony_control, symphony_auditor
"""
    )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.payment_outbox_late_results)
    OR EXISTS (SELECT FROM orchestration.payment_outbox_interventions) THEN
    RAISE EXCEPTION 'payment_outbox_late_results or payment_outbox_interventions contains evidence; '
      'to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.verify_outbox")
    op.execute("DROP FUNCTION orchestration.redrive_outbox_item")
    op.execute("DROP FUNCTION orchestration.close_contradiction")
    op.execute("DROP FUNCTION orchestration.expire_outbox_lease")
    op.execute("DROP FUNCTION orchestration.reschedule_outbox_item")
    op.execute("DROP FUNCTION orchestration.cancel_outbox_item")
    op.execute("DROP FUNCTION orchestration.record_late_result")
    op.execute("DROP FUNCTION orchestration.resolve_outbox_item")
    op.execute("DROP FUNCTION orchestration.record_worker_result")
    op.execute("DROP TRIGGER guard_end ON orchestration.instructions")
    op.execute("DROP TRIGGER guard_unresolved_insert ON orchestration.instructions")
    op.execute("DROP TRIGGER guard_unresolved_update ON orchestration.instructions")
    op.execute("DROP TRIGGER guard_redrive ON orchestration.payment_outbox_items")
    op.execute("DROP TRIGGER unresolved ON orchestration.payment_outbox_attempts")
    op.execute("DROP TRIGGER cancelled ON orchestration.payment_outbox_attempts")
    op.execute("DROP TRIGGER rescheduled ON orchestration.payment_outbox_pending")
    op.execute("DROP TRIGGER lease_expired ON orchestration.payment_outbox_pending")
    op.execute("DROP VIEW orchestration.payment_outbox_late_result_result")
    op.execute("DROP VIEW orchestration.payment_outbox_intervention_result")
    op.execute("DROP VIEW orchestration.payment_outbox_contradictions")
    op.execute("DROP VIEW orchestration.payment_outbox_unresolved")
    op.execute("DROP VIEW orchestration.payment_outbox_status")
    op.drop_table("payment_outbox_interventions", schema="orchestration")
    op.drop_table("payment_outbox_late_results", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_instruction_end")
    op.execute("DROP FUNCTION orchestration.guard_redrive")
    op.execute("DROP FUNCTION orchestration.record_intervention")
    op.execute("DROP FUNCTION orchestration.record_outbox_act")
    op.execute("DROP FUNCTION orchestration.fill_intervention")
    op.execute("DROP FUNCTION orchestration.guard_late_result")
    op.execute("DROP FUNCTION orchestration.count_unresolved")
    op.execute("DROP FUNCTION orchestration.guard_unresolved")
    op.execute("DROP FUNCTION orchestration.lock_outbox_item")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0009'")
    op.execute("RESET ROLE")
