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
REVOKE EXECUTE ON FUNCTION orchestration.guard_attempt_log FROM PUBLIC;
