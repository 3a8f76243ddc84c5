"""Create the kill switches, their gate and the check that every gated write makes.

Serves: INV-KIL-001 to INV-KIL-003, INV-APP-001, INV-AUD-001, INV-API-002. The triggers that call
`block_execution_if_killed` are created with the tables that they gate.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.create_table(
        "kill_switch_gate",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("singleton", name=op.f("ck_kill_switch_gate_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_kill_switch_gate")),
        schema="orchestration",
    )
    op.execute("GRANT SELECT ON orchestration.kill_switch_gate TO symphony_auditor")
    op.execute("INSERT INTO orchestration.kill_switch_gate DEFAULT VALUES")
    op.create_table(
        "kill_switches",
        sa.Column("event_no", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("event_no >= 1", name=op.f("ck_kill_switches_event_no")),
        sa.CheckConstraint(
            "CASE"
            " WHEN scope IN ('GLOBAL', 'INGEST', 'EXECUTION', 'DISPATCH') THEN target IS NULL"
            " WHEN scope IN ('PARTICIPANT', 'RAIL') THEN octet_length(coalesce(target, '')) BETWEEN 1 AND 1000"
            " ELSE false END",
            name=op.f("ck_kill_switches_scope"),
        ),
        sa.CheckConstraint("action IN ('ENGAGE', 'RELEASE')", name=op.f("ck_kill_switches_action")),
        sa.CheckConstraint(
            "octet_length(reason) BETWEEN 1 AND 4000", name=op.f("ck_kill_switches_reason")
        ),
        sa.CheckConstraint(
            "octet_length(actor) BETWEEN 1 AND 1000", name=op.f("ck_kill_switches_actor")
        ),
        sa.CheckConstraint(
            "octet_length(key) BETWEEN 1 AND 1000", name=op.f("ck_kill_switches_key")
        ),
        sa.PrimaryKeyConstraint("event_no", name=op.f("pk_kill_switches")),
        sa.UniqueConstraint("key", name=op.f("uq_kill_switches_key")),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_kill_switches_last"),
        "kill_switches",
        ["scope", sa.text("coalesce(target, '')"), "event_no"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_kill_switches_xact_id"),
        "kill_switches",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.kill_switches
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.kill_switch_state
WITH (security_barrier = true)
AS
SELECT DISTINCT ON (k.scope, k.target)
       k.scope,
       k.target,
       k.action = 'ENGAGE' AS engaged,
       k.reason,
       k.actor,
       k.occurred_at,
       k.db_user
FROM orchestration.kill_switches k
ORDER BY k.scope, k.target, k.event_no DESC;

ALTER VIEW orchestration.kill_switch_state OWNER TO symphony_owner;
GRANT SELECT ON orchestration.kill_switch_state
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.kill_switch_result
WITH (security_invoker = true)
AS
SELECT k.*, false AS replayed
FROM orchestration.kill_switches k;

ALTER VIEW orchestration.kill_switch_result OWNER TO symphony_owner
"""
    )

    op.execute(
        """
CREATE FUNCTION orchestration.guard_kill_switch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_next bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NEW;
  END IF;
  -- The statement trigger has locked the gate, so events are numbered in the order of their commits.
  SELECT coalesce(max(k.event_no), 0) + 1 INTO v_next FROM orchestration.kill_switches k;
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.event_no = NEW.event_no) THEN
    -- The primary key rejects this row.
    v_next := NEW.event_no;
  END IF;
  NEW.event_no := coalesce(NEW.event_no, v_next);
  NEW.occurred_at := clock_timestamp();
  NEW.db_user := SESSION_USER;
  NEW.xact_id := pg_current_xact_id()::text::bigint;
  IF NEW.event_no <> v_next THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-001', '22023', 'event_no must be the number after the last event', 'kill_switches',
      jsonb_build_object('event_no', NEW.event_no, 'expected', v_next),
      'Leave event_no out: the database sets it.', 'event_no'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_kill_switch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_kill_switch FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.stopped_targets(p_scope text) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The recursion and the row comparison read one index entry per target, however many events there
-- are. With an equality the planner could choose to walk the primary key backwards instead.
  WITH RECURSIVE named (target) AS (
    SELECT min(coalesce(k.target, ''))
    FROM orchestration.kill_switches k
    WHERE k.scope = p_scope
    UNION ALL
    SELECT (
      SELECT min(coalesce(k.target, ''))
      FROM orchestration.kill_switches k
      WHERE k.scope = p_scope AND coalesce(k.target, '') > n.target
    )
    FROM named n
    WHERE n.target IS NOT NULL
  )
  SELECT array_agg(n.target)
  FROM named n
  CROSS JOIN LATERAL (
    SELECT k.scope, k.target, k.action
    FROM orchestration.kill_switches k
    WHERE (k.scope, coalesce(k.target, '')) <= (p_scope, n.target)
    ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
    LIMIT 1
  ) last
  WHERE (last.scope, last.target) = (p_scope, n.target) AND last.action = 'ENGAGE'
$$;

ALTER FUNCTION orchestration.stopped_targets OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.stopped_targets FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.refuse_if_killed(
  p_scope text,
  p_participant_ids text[] DEFAULT NULL,
  p_rail_types text[] DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The caller shares the gate, so a write that passes commits before the next switch is engaged.
DECLARE
  v_switch orchestration.kill_switches;
BEGIN
  -- GLOBAL and the stage are looked up in separate statements, because one query over all costs more.
  SELECT k.*
  INTO v_switch
  FROM orchestration.kill_switches k
  WHERE (k.scope, coalesce(k.target, '')) <= ('GLOBAL', '')
  ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
  LIMIT 1;
  IF v_switch.scope IS DISTINCT FROM 'GLOBAL' OR v_switch.action = 'RELEASE' THEN
    SELECT k.*
    INTO v_switch
    FROM orchestration.kill_switches k
    WHERE (k.scope, coalesce(k.target, '')) <= (p_scope, '')
    ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
    LIMIT 1;
    IF v_switch.scope IS DISTINCT FROM p_scope OR v_switch.action = 'RELEASE' THEN
      v_switch := NULL;
    END IF;
  END IF;
  IF v_switch.scope IS NULL AND coalesce(p_participant_ids, p_rail_types) IS NOT NULL THEN
    SELECT last.*
    INTO v_switch
    FROM (
      SELECT 'PARTICIPANT', p.id FROM unnest(p_participant_ids) AS p (id)
      UNION ALL
      SELECT 'RAIL', r.type FROM unnest(p_rail_types) AS r (type)
    ) s (scope, target)
    CROSS JOIN LATERAL (
      SELECT k.*
      FROM orchestration.kill_switches k
      WHERE (k.scope, coalesce(k.target, '')) <= (s.scope, s.target)
      ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
      LIMIT 1
    ) last
    WHERE (last.scope, last.target) = (s.scope, s.target)
      AND last.action = 'ENGAGE'
    LIMIT 1;
  END IF;
  IF v_switch.scope IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-001', 'P7501',
      format('the kill switch %s is engaged', concat_ws(' ', v_switch.scope, v_switch.target)),
      'kill_switches',
      jsonb_build_object('scope', v_switch.scope, 'target', v_switch.target,
        'reason', v_switch.reason),
      'Wait until the switch is released. kill_switch_state shows its state.', 'scope'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.refuse_if_killed OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_if_killed FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.block_execution_if_killed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- Longer than 70 lines because a query over a transition table cannot be in a function of its own.
-- Arguments of the trigger: the stage that the table belongs to, and which rows are gated.
--   (none)      every row; the rows have no participant
--   'EACH'      every row; participant_id is its participant
--   'ENQUEUED'  the rows with redrive_no = 0, because a redrive is an act of control
--   'OPENED'    the rows that open an attempt, because closing one ends work that has begun; a third
--               argument names the table that has participant_id and rail_type by outbox_id
-- The trigger fires after the insert, so that a replay, which stores nothing, is not checked. The
-- functions share the gate before they take any other lock.
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_rows text := coalesce(TG_ARGV[1], '');
  v_gated boolean;
  v_participant_ids text[];
  v_rail_types text[];
BEGIN
  -- A row that a subscription copies was checked on the server where it was written.
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    RETURN NULL;
  END IF;
  -- Return before the gate is shared if no row is gated.
  IF TG_LEVEL = 'ROW' THEN
    v_gated := true;
  ELSIF v_rows = 'ENQUEUED' THEN
    v_gated := EXISTS (SELECT FROM inserted n WHERE n.redrive_no = 0);
  ELSIF v_rows = 'OPENED' THEN
    v_gated := EXISTS (SELECT FROM inserted n WHERE n.phase = 'OPEN');
    IF v_gated AND EXISTS (SELECT FROM inserted c WHERE c.error_code = 'CANCELLED') THEN
      -- A cancellation opens and closes its attempt in one statement and dispatches nothing.
      v_gated := EXISTS (
        SELECT FROM inserted n
        WHERE n.phase = 'OPEN'
          AND NOT EXISTS (
            SELECT FROM inserted c
            WHERE c.outbox_id = n.outbox_id
              AND c.attempt_no = n.attempt_no
              AND c.state = 'FAILED'
              AND c.error_code = 'CANCELLED'
              AND c.requested_state IS NULL
          )
      );
    END IF;
  ELSE
    v_gated := EXISTS (SELECT FROM inserted);
  END IF;
  IF NOT v_gated THEN
    RETURN NULL;
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Collect the participants and rails only if a switch for one of them was ever engaged.
  IF v_rows <> '' AND EXISTS (
    SELECT FROM orchestration.kill_switches k WHERE k.scope IN ('PARTICIPANT', 'RAIL')
  ) THEN
    IF TG_LEVEL = 'ROW' THEN
      v_participant_ids := ARRAY[NEW.participant_id];
    ELSIF v_rows = 'EACH' THEN
      SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids FROM inserted n;
    ELSIF v_rows = 'ENQUEUED' THEN
      SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids
      FROM inserted n
      WHERE n.redrive_no = 0;
    ELSE
      -- OFFSET 0 keeps this an index look-up per row whatever the table's statistics say.
      EXECUTE format(
        'SELECT array_agg(DISTINCT p.participant_id), array_agg(DISTINCT p.rail_type)'
        ' FROM inserted n'
        ' CROSS JOIN LATERAL ('
        '   SELECT p.participant_id, p.rail_type'
        '   FROM orchestration.%I p'
        '   WHERE p.outbox_id = n.outbox_id'
        '   OFFSET 0'
        ' ) p'
        ' WHERE n.phase = ''OPEN''',
        TG_ARGV[2]
      ) INTO v_participant_ids, v_rail_types;
    END IF;
  END IF;
  PERFORM orchestration.refuse_if_killed(TG_ARGV[0], v_participant_ids, v_rail_types);
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.block_execution_if_killed OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.block_execution_if_killed FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT ON orchestration.kill_switches
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('kill_switch_gate');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER gate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.kill_switches
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_kill_switch();
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.kill_switches
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('event_no')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.kill_switches
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'event_no');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.kill_switches
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.kill_switch_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
ALTER TABLE orchestration.kill_switch_gate ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.kill_switch_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
ALTER TABLE orchestration.kill_switch_gate ENABLE ALWAYS TRIGGER no_truncate
"""
    )

    op.execute(
        """
CREATE FUNCTION orchestration.engage_kill_switch(
  p_scope text,
  p_reason text,
  p_target text DEFAULT NULL,
  p_engaged_by text DEFAULT SESSION_USER,
  p_key text DEFAULT NULL
) RETURNS SETOF orchestration.kill_switch_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = 0
AS $$
-- There is no lock_timeout, because a stop must not be given up. The wait ends: a session that holds
-- the gate is ended after 10 seconds without activity (bound_idle_time).
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'kill_switches', ARRAY['scope', 'target', 'actor', 'key'],
    ARRAY[p_scope, p_target, p_engaged_by, p_key]
  );
  PERFORM orchestration.refuse_long_texts('kill_switches', ARRAY['reason'], ARRAY[p_reason], 4000);
  PERFORM orchestration.lock_gate('kill_switch_gate');
  RETURN QUERY
  SELECT k.*, true
  FROM orchestration.kill_switches k
  WHERE k.key = p_key
    AND k.db_user = SESSION_USER
    AND (k.scope, k.target, k.action, k.reason, k.actor)
      IS NOT DISTINCT FROM (p_scope, p_target, 'ENGAGE', p_reason, p_engaged_by);
  IF FOUND THEN
    RETURN;
  END IF;
  -- The unique constraint would reject the key too, but its DETAIL would show the whole key.
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.key = p_key) THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-003', '23505', 'p_key belongs to a different event', 'kill_switches',
      jsonb_build_object('key', p_key), 'Use a new key for each event.', 'key'
    );
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor, key)
  VALUES (p_scope, p_target, 'ENGAGE', p_reason, p_engaged_by, p_key)
  RETURNING *, false;
END
$$;

ALTER FUNCTION orchestration.engage_kill_switch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.engage_kill_switch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.engage_kill_switch TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.release_kill_switch(
  p_scope text,
  p_reason text,
  p_target text DEFAULT NULL,
  p_released_by text DEFAULT SESSION_USER,
  p_key text DEFAULT NULL
) RETURNS SETOF orchestration.kill_switch_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'kill_switches', ARRAY['scope', 'target', 'actor', 'key'],
    ARRAY[p_scope, p_target, p_released_by, p_key]
  );
  PERFORM orchestration.refuse_long_texts('kill_switches', ARRAY['reason'], ARRAY[p_reason], 4000);
  PERFORM orchestration.lock_gate('kill_switch_gate');
  RETURN QUERY
  SELECT k.*, true
  FROM orchestration.kill_switches k
  WHERE k.key = p_key
    AND k.db_user = SESSION_USER
    AND (k.scope, k.target, k.action, k.reason, k.actor)
      IS NOT DISTINCT FROM (p_scope, p_target, 'RELEASE', p_reason, p_released_by);
  IF FOUND THEN
    RETURN;
  END IF;
  -- The unique constraint would reject the key too, but its DETAIL would show the whole key.
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.key = p_key) THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-003', '23505', 'p_key belongs to a different event', 'kill_switches',
      jsonb_build_object('key', p_key), 'Use a new key for each event.', 'key'
    );
  END IF;
  IF NOT EXISTS (
    SELECT FROM orchestration.kill_switch_state s
    WHERE s.scope = p_scope AND s.target IS NOT DISTINCT FROM p_target AND s.engaged
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'no such kill switch is engaged', 'kill_switches',
      jsonb_build_object('scope', p_scope, 'target', p_target),
      'kill_switch_state shows the engaged switches.', 'scope'
    );
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor, key)
  VALUES (p_scope, p_target, 'RELEASE', p_reason, p_released_by, p_key)
  RETURNING *, false;
END
$$;

ALTER FUNCTION orchestration.release_kill_switch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.release_kill_switch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.release_kill_switch TO symphony_control
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0003'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.kill_switches) THEN
    RAISE EXCEPTION 'kill_switches contains evidence; to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.release_kill_switch")
    op.execute("DROP FUNCTION orchestration.engage_kill_switch")
    op.execute("DROP FUNCTION orchestration.block_execution_if_killed")
    op.execute("DROP FUNCTION orchestration.refuse_if_killed")
    op.execute("DROP FUNCTION orchestration.stopped_targets")
    op.execute("DROP VIEW orchestration.kill_switch_result")
    op.execute("DROP VIEW orchestration.kill_switch_state")
    op.drop_table("kill_switches", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_kill_switch")
    op.drop_table("kill_switch_gate", schema="orchestration")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0002'")
    op.execute("RESET ROLE")
