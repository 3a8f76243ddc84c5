"""Create the attempt logs: the executions of an instruction and its calls to a rail.

Serves: INV-APP-001, INV-APP-002, INV-API-002.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    create_tables()
    create_guards()
    create_functions()
    op.execute("UPDATE orchestration.schema_revision SET revision = '0008'")
    op.execute("RESET ROLE")


def create_tables() -> None:
    op.create_table(
        "execution_attempts",
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("attempt_no >= 1", name=op.f("ck_execution_attempts_attempt_no")),
        sa.CheckConstraint(
            "octet_length(worker_id) BETWEEN 1 AND 1000",
            name=op.f("ck_execution_attempts_worker_id"),
        ),
        sa.CheckConstraint(
            "CASE phase"
            " WHEN 'OPEN' THEN outcome IS NULL"
            " WHEN 'CLOSE' THEN outcome IS NOT NULL"
            " ELSE false END"
            " AND outcome IN ('SUCCEEDED', 'FAILED', 'ABANDONED')",
            name=op.f("ck_execution_attempts_outcome"),
        ),
        sa.CheckConstraint(
            "(num_nonnulls(error_code, error_message) = 0"
            " OR coalesce(outcome <> 'SUCCEEDED', false))"
            " AND octet_length(error_code) >= 1 AND octet_length(error_code) <= 1000"
            " AND octet_length(error_message) >= 1 AND octet_length(error_message) <= 4000",
            name=op.f("ck_execution_attempts_error"),
        ),
        sa.CheckConstraint(
            "extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_execution_attempts_years"),
        ),
        sa.ForeignKeyConstraint(
            ["participant_id", "instruction_id"],
            ["orchestration.instructions.participant_id", "orchestration.instructions.id"],
            name=op.f("fk_execution_attempts_participant_id_instruction_id"),
        ),
        sa.PrimaryKeyConstraint(
            "instruction_id", "attempt_no", "phase", name=op.f("pk_execution_attempts")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_execution_attempts_xact_id"),
        "execution_attempts",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.execution_attempts
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.create_table(
        "transaction_attempts",
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
        sa.Column("attempt_no", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("participant_id", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("rail_type", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("rail_reference", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("attempt_no >= 1", name=op.f("ck_transaction_attempts_attempt_no")),
        sa.CheckConstraint(
            "octet_length(worker_id) BETWEEN 1 AND 1000",
            name=op.f("ck_transaction_attempts_worker_id"),
        ),
        sa.CheckConstraint(
            "CASE phase"
            " WHEN 'OPEN' THEN outcome IS NULL"
            " WHEN 'CLOSE' THEN outcome IS NOT NULL"
            " ELSE false END"
            " AND outcome IN ('SUCCEEDED', 'FAILED', 'ABANDONED')",
            name=op.f("ck_transaction_attempts_outcome"),
        ),
        sa.CheckConstraint(
            "(num_nonnulls(error_code, error_message) = 0"
            " OR coalesce(outcome <> 'SUCCEEDED', false))"
            " AND octet_length(error_code) >= 1 AND octet_length(error_code) <= 1000"
            " AND octet_length(error_message) >= 1 AND octet_length(error_message) <= 4000",
            name=op.f("ck_transaction_attempts_error"),
        ),
        sa.CheckConstraint(
            "extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_transaction_attempts_years"),
        ),
        sa.CheckConstraint(
            "octet_length(rail_type) BETWEEN 1 AND 1000",
            name=op.f("ck_transaction_attempts_rail_type"),
        ),
        sa.CheckConstraint(
            "(rail_reference IS NULL OR phase = 'CLOSE')"
            " AND octet_length(rail_reference) >= 1 AND octet_length(rail_reference) <= 1000",
            name=op.f("ck_transaction_attempts_rail_reference"),
        ),
        sa.ForeignKeyConstraint(
            ["participant_id", "instruction_id"],
            ["orchestration.instructions.participant_id", "orchestration.instructions.id"],
            name=op.f("fk_transaction_attempts_participant_id_instruction_id"),
        ),
        sa.PrimaryKeyConstraint(
            "instruction_id", "attempt_no", "phase", name=op.f("pk_transaction_attempts")
        ),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_transaction_attempts_xact_id"),
        "transaction_attempts",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.transaction_attempts
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )


def create_guards() -> None:
    op.execute(
        """
CREATE FUNCTION orchestration.meet_newer_attempts(p_log text, p_instruction_id uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Called before an attempt is rejected. Rows that are newer than the snapshot are not visible, but
-- the primary key contains them. If one exists, inserting the row that would come next conflicts
-- with it and raises 40001. Otherwise the caller raises an error, which undoes the insert.
DECLARE
  v_last jsonb;
  v_next jsonb;
BEGIN
  IF current_setting('transaction_isolation') NOT IN ('repeatable read', 'serializable') THEN
    RETURN;
  END IF;
  EXECUTE format(
    'SELECT to_jsonb(a)
    FROM orchestration.%I a
    WHERE a.instruction_id = $1
    ORDER BY a.attempt_no DESC, a.phase = ''CLOSE'' DESC
    LIMIT 1',
    p_log
  ) INTO v_last USING p_instruction_id;
  IF v_last IS NULL THEN
    SELECT jsonb_build_object('instruction_id', i.id, 'participant_id', i.participant_id,
      'worker_id', SESSION_USER, 'rail_type', SESSION_USER, 'attempt_no', 1, 'phase', 'OPEN')
    INTO v_next
    FROM orchestration.instructions i
    WHERE i.id = p_instruction_id;
  ELSIF v_last ->> 'phase' = 'OPEN' THEN
    v_next := v_last || jsonb_build_object('phase', 'CLOSE', 'outcome', 'ABANDONED');
  ELSIF v_last ->> 'outcome' <> 'SUCCEEDED' THEN
    v_next := v_last || jsonb_build_object('attempt_no', (v_last ->> 'attempt_no')::bigint + 1,
      'phase', 'OPEN', 'outcome', NULL, 'error_code', NULL, 'error_message', NULL,
      'rail_reference', NULL);
  END IF;
  IF v_next IS NOT NULL THEN
    EXECUTE format(
      'INSERT INTO orchestration.%1$I
      SELECT r.*
      FROM jsonb_populate_record(NULL::orchestration.%1$I, $1) r
      ON CONFLICT DO NOTHING',
      p_log
    ) USING v_next || jsonb_build_object('occurred_at', clock_timestamp(),
      'db_user', SESSION_USER, 'xact_id', pg_current_xact_id()::text::bigint);
  END IF;
END
$$;

ALTER FUNCTION orchestration.meet_newer_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.meet_newer_attempts FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_attempt_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because both attempt logs share it: it reads the log by name, and the guards
-- of an opening and of a closing need the same earlier row.
DECLARE
  v_detail jsonb := jsonb_build_object('instruction_id', NEW.instruction_id,
    'attempt_no', NEW.attempt_no, 'phase', NEW.phase);
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_known boolean;
  v_unopened boolean;
  v_skipped boolean;
  v_succeeded boolean;
  v_different boolean;
  v_in_future boolean;
  v_before jsonb;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- Copied rows of an attempt arrive in any order. verify_attempt_logs reports those that do not
    -- belong together.
    RETURN NEW;
  END IF;
  -- For an opening, the closing of the previous attempt; for a closing, the opening of its attempt.
  EXECUTE format(
    'SELECT to_jsonb(a)
    FROM orchestration.%I a
    WHERE a.instruction_id = $1 AND a.attempt_no = $2 AND a.phase = $3',
    TG_TABLE_NAME
  ) INTO v_before USING NEW.instruction_id,
    NEW.attempt_no::bigint - (NEW.phase = 'OPEN')::integer,
    CASE NEW.phase WHEN 'OPEN' THEN 'CLOSE' ELSE 'OPEN' END;
  IF NOT v_replica THEN
    NEW.participant_id := coalesce(
      NEW.participant_id,
      (SELECT i.participant_id FROM orchestration.instructions i WHERE i.id = NEW.instruction_id),
      ''
    );
    IF NEW.phase = 'CLOSE' THEN
      NEW.worker_id := coalesce(NEW.worker_id, v_before ->> 'worker_id');
      IF TG_TABLE_NAME = 'transaction_attempts' THEN
        NEW.rail_type := coalesce(NEW.rail_type, v_before ->> 'rail_type');
      END IF;
    END IF;
    NEW.occurred_at := coalesce(NEW.occurred_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  EXECUTE format(
    'SELECT EXISTS (
      SELECT FROM orchestration.%I a
      WHERE a.instruction_id = $1 AND a.attempt_no = $2 AND a.phase = $3
    )',
    TG_TABLE_NAME
  ) INTO v_known USING NEW.instruction_id, NEW.attempt_no, NEW.phase;
  IF v_known OR (NEW.phase IN ('OPEN', 'CLOSE')) IS NOT TRUE THEN
    -- The primary key or a CHECK constraint rejects the row.
    RETURN NEW;
  END IF;
  v_unopened := NEW.phase = 'CLOSE' AND v_before IS NULL;
  v_skipped := NEW.phase = 'OPEN' AND v_before IS NULL AND NEW.attempt_no <> 1;
  v_succeeded := NEW.phase = 'OPEN' AND v_before ->> 'outcome' = 'SUCCEEDED';
  v_different := NEW.phase = 'CLOSE'
    AND (NEW.participant_id, NEW.worker_id, to_jsonb(NEW) ->> 'rail_type') IS DISTINCT FROM
      (v_before ->> 'participant_id', v_before ->> 'worker_id', v_before ->> 'rail_type');
  v_in_future := NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp();
  CASE
    WHEN v_unopened OR v_skipped OR v_succeeded THEN
      PERFORM orchestration.meet_newer_attempts(TG_TABLE_NAME, NEW.instruction_id);
      PERFORM orchestration.raise_invariant(
        'INV-APP-002', 'P7401',
        CASE
          WHEN v_unopened THEN 'the attempt was not opened'
          WHEN v_skipped THEN 'the previous attempt is not closed'
          ELSE 'the previous attempt has the outcome SUCCEEDED'
        END,
        TG_TABLE_NAME, v_detail, 'Check the last attempt of the instruction in this table.',
        'attempt_no'
      );
    WHEN v_different THEN
      PERFORM orchestration.raise_invariant(
        'INV-APP-002', 'P7401',
        'participant_id, worker_id or rail_type differs from the opening of the attempt',
        TG_TABLE_NAME, v_detail,
        'Leave them out of a closing: the database takes them from the opening.', 'worker_id'
      );
    WHEN v_in_future THEN
      PERFORM orchestration.raise_invariant(
        'INV-APP-002', 'P7401', 'occurred_at must not be in the future', TG_TABLE_NAME,
        v_detail || jsonb_build_object('occurred_at', NEW.occurred_at),
        'Leave occurred_at out: the database sets it.', 'occurred_at'
      );
    ELSE
      NULL;
  END CASE;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attempt_log OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attempt_log FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.execution_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attempt_log();
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.execution_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'instruction_id', 'attempt_no', 'phase');
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.execution_attempts
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.transaction_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attempt_log();
ALTER TABLE orchestration.transaction_attempts ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.transaction_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'instruction_id', 'attempt_no', 'phase');
ALTER TABLE orchestration.transaction_attempts ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.transaction_attempts
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.transaction_attempts ENABLE ALWAYS TRIGGER no_truncate
"""
    )


def create_functions() -> None:
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.execution_attempt_result
WITH (security_invoker = true)
AS
SELECT a.*, false AS replayed
FROM orchestration.execution_attempts a;

ALTER VIEW orchestration.execution_attempt_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.transaction_attempt_result
WITH (security_invoker = true)
AS
SELECT a.*, false AS replayed
FROM orchestration.transaction_attempts a;

ALTER VIEW orchestration.transaction_attempt_result OWNER TO symphony_owner
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.lock_attempted_instruction(p_instruction_id uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Lets one transaction at a time write the attempt logs of an instruction. An enqueue for the same
-- instruction waits until this transaction ends.
BEGIN
  -- The waiting enqueue holds a gate, so the lock must not stay with a client that has stopped.
  PERFORM orchestration.bound_idle_time();
  PERFORM 1
  FROM orchestration.instructions i
  WHERE i.id = p_instruction_id
  FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the instruction does not exist', 'instructions',
      jsonb_build_object('id', p_instruction_id), 'Check the id.', 'id'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.lock_attempted_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_attempted_instruction FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.open_execution_attempt(p_instruction_id uuid, p_worker_id text)
RETURNS SETOF orchestration.execution_attempts
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['worker_id'],
    ARRAY[p_worker_id]
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  -- Repeated if a row that was not inserted by this function has taken the number meanwhile.
  LOOP
    RETURN QUERY
    INSERT INTO orchestration.execution_attempts (instruction_id, attempt_no, phase, worker_id)
    SELECT p_instruction_id, coalesce(max(a.attempt_no), 0) + 1, 'OPEN', p_worker_id
    FROM orchestration.execution_attempts a
    WHERE a.instruction_id = p_instruction_id
    ON CONFLICT DO NOTHING
    RETURNING *;
    EXIT WHEN FOUND;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.open_execution_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.open_execution_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.open_execution_attempt TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.close_execution_attempt(
  p_instruction_id uuid,
  p_attempt_no integer,
  p_outcome text,
  p_error_code text DEFAULT NULL,
  p_error_message text DEFAULT NULL
) RETURNS SETOF orchestration.execution_attempt_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_recorded orchestration.execution_attempt_result;
  v_replayed boolean;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['outcome', 'error_code'],
    ARRAY[p_outcome, p_error_code]
  );
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['error_message'], ARRAY[p_error_message], 4000
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.execution_attempts a
    WHERE a.instruction_id = p_instruction_id
      AND a.attempt_no = p_attempt_no
      AND a.phase = 'OPEN'
  ) THEN
    PERFORM orchestration.meet_newer_attempts('execution_attempts', p_instruction_id);
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the attempt was not opened', 'execution_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no),
      'Check attempt_no, or use open_execution_attempt first.', 'attempt_no'
    );
  END IF;
  INSERT INTO orchestration.execution_attempts
    (instruction_id, attempt_no, phase, outcome, error_code, error_message)
  VALUES (p_instruction_id, p_attempt_no, 'CLOSE', p_outcome, p_error_code, p_error_message)
  ON CONFLICT DO NOTHING;
  v_replayed := NOT FOUND;
  SELECT a.*, v_replayed INTO v_recorded
  FROM orchestration.execution_attempts a
  WHERE a.instruction_id = p_instruction_id
    AND a.attempt_no = p_attempt_no
    AND a.phase = 'CLOSE';
  IF (v_recorded.outcome, v_recorded.error_code, v_recorded.error_message)
    IS DISTINCT FROM (p_outcome, p_error_code, p_error_message) THEN
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401', 'the attempt was already closed with a different outcome',
      'execution_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no,
        'outcome', v_recorded.outcome),
      'Do not close it again. Record what happened later in a new attempt.', 'outcome'
    );
  END IF;
  RETURN NEXT v_recorded;
END
$$;

ALTER FUNCTION orchestration.close_execution_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_execution_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.close_execution_attempt TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.open_transaction_attempt(
  p_instruction_id uuid,
  p_worker_id text,
  p_rail_type text
) RETURNS SETOF orchestration.transaction_attempts
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'transaction_attempts', ARRAY['worker_id', 'rail_type'],
    ARRAY[p_worker_id, p_rail_type]
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  -- Repeated if a row that was not inserted by this function has taken the number meanwhile.
  LOOP
    RETURN QUERY
    INSERT INTO orchestration.transaction_attempts
      (instruction_id, attempt_no, phase, worker_id, rail_type)
    SELECT p_instruction_id, coalesce(max(a.attempt_no), 0) + 1, 'OPEN', p_worker_id, p_rail_type
    FROM orchestration.transaction_attempts a
    WHERE a.instruction_id = p_instruction_id
    ON CONFLICT DO NOTHING
    RETURNING *;
    EXIT WHEN FOUND;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.open_transaction_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.open_transaction_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.open_transaction_attempt TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.close_transaction_attempt(
  p_instruction_id uuid,
  p_attempt_no integer,
  p_outcome text,
  p_error_code text DEFAULT NULL,
  p_error_message text DEFAULT NULL,
  p_rail_reference text DEFAULT NULL
) RETURNS SETOF orchestration.transaction_attempt_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_recorded orchestration.transaction_attempt_result;
  v_replayed boolean;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'transaction_attempts', ARRAY['outcome', 'error_code', 'rail_reference'],
    ARRAY[p_outcome, p_error_code, p_rail_reference]
  );
  PERFORM orchestration.refuse_long_texts(
    'transaction_attempts', ARRAY['error_message'], ARRAY[p_error_message], 4000
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.transaction_attempts a
    WHERE a.instruction_id = p_instruction_id
      AND a.attempt_no = p_attempt_no
      AND a.phase = 'OPEN'
  ) THEN
    PERFORM orchestration.meet_newer_attempts('transaction_attempts', p_instruction_id);
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the attempt was not opened', 'transaction_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no),
      'Check attempt_no, or use open_transaction_attempt first.', 'attempt_no'
    );
  END IF;
  INSERT INTO orchestration.transaction_attempts
    (instruction_id, attempt_no, phase, outcome, rail_reference, error_code, error_message)
  VALUES (p_instruction_id, p_attempt_no, 'CLOSE', p_outcome, p_rail_reference, p_error_code,
    p_error_message)
  ON CONFLICT DO NOTHING;
  v_replayed := NOT FOUND;
  SELECT a.*, v_replayed INTO v_recorded
  FROM orchestration.transaction_attempts a
  WHERE a.instruction_id = p_instruction_id
    AND a.attempt_no = p_attempt_no
    AND a.phase = 'CLOSE';
  IF (v_recorded.outcome, v_recorded.rail_reference, v_recorded.error_code,
      v_recorded.error_message)
    IS DISTINCT FROM (p_outcome, p_rail_reference, p_error_code, p_error_message) THEN
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401', 'the attempt was already closed with a different outcome',
      'transaction_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no,
        'outcome', v_recorded.outcome),
      'Do not close it again. Record what happened later in a new attempt.', 'outcome'
    );
  END IF;
  RETURN NEXT v_recorded;
END
$$;

ALTER FUNCTION orchestration.close_transaction_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_transaction_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.close_transaction_attempt TO symphony_executor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.verify_attempt_logs()
RETURNS TABLE (finding text, instruction_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  WITH attempts AS (
    SELECT 'execution_attempts' AS log, e.instruction_id, e.attempt_no, e.phase, e.participant_id,
           e.worker_id, NULL AS rail_type, e.outcome
    FROM orchestration.execution_attempts e
    UNION ALL
    SELECT 'transaction_attempts', t.instruction_id, t.attempt_no, t.phase, t.participant_id,
           t.worker_id, t.rail_type, t.outcome
    FROM orchestration.transaction_attempts t
  ), found AS (
    SELECT 'ORPHAN: the instruction of the attempt does not exist' AS finding, a.*
    FROM attempts a
    WHERE NOT EXISTS (
      SELECT FROM orchestration.instructions i
      WHERE (i.id, i.participant_id) = (a.instruction_id, a.participant_id))
    UNION ALL
    SELECT 'CLOSE: the attempt was closed but not opened, or by a different worker or rail', c.*
    FROM attempts c
    LEFT JOIN attempts o
      ON (o.log, o.instruction_id, o.attempt_no, o.phase)
        = (c.log, c.instruction_id, c.attempt_no, 'OPEN')
    WHERE c.phase = 'CLOSE'
      AND (o.participant_id, o.worker_id, o.rail_type)
        IS DISTINCT FROM (c.participant_id, c.worker_id, c.rail_type)
    UNION ALL
    SELECT 'ORDER: the attempt was opened, but the previous one is not closed or SUCCEEDED', o.*
    FROM attempts o
    LEFT JOIN attempts c
      ON (c.log, c.instruction_id, c.attempt_no, c.phase)
        = (o.log, o.instruction_id, o.attempt_no - 1, 'CLOSE')
    WHERE o.phase = 'OPEN' AND o.attempt_no > 1 AND coalesce(c.outcome, 'SUCCEEDED') = 'SUCCEEDED'
  )
  SELECT f.finding, f.instruction_id, f.participant_id,
         jsonb_build_object('log', f.log, 'attempt_no', f.attempt_no, 'phase', f.phase)
  FROM found f
  ORDER BY f.finding, f.log, f.instruction_id, f.attempt_no
$$;

ALTER FUNCTION orchestration.verify_attempt_logs OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_attempt_logs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_attempt_logs TO symphony_control, symphony_auditor
"""
    )


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.execution_attempts)
    OR EXISTS (SELECT FROM orchestration.transaction_attempts)
  THEN
    RAISE EXCEPTION 'execution_attempts and transaction_attempts contain evidence; '
      'to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.verify_attempt_logs")
    op.execute("DROP FUNCTION orchestration.close_transaction_attempt")
    op.execute("DROP FUNCTION orchestration.open_transaction_attempt")
    op.execute("DROP FUNCTION orchestration.close_execution_attempt")
    op.execute("DROP FUNCTION orchestration.open_execution_attempt")
    op.execute("DROP FUNCTION orchestration.lock_attempted_instruction")
    op.execute("DROP VIEW orchestration.transaction_attempt_result")
    op.execute("DROP VIEW orchestration.execution_attempt_result")
    op.drop_table("transaction_attempts", schema="orchestration")
    op.drop_table("execution_attempts", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_attempt_log")
    op.execute("DROP FUNCTION orchestration.meet_newer_attempts")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0007'")
    op.execute("RESET ROLE")
