CREATE FUNCTION orchestration.guard_attempt_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_detail jsonb := jsonb_build_object('instruction_id', NEW.instruction_id,
    'attempt_no', NEW.attempt_no, 'phase', NEW.phase);
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_known boolean;
  v_before jsonb;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- The rows of an attempt come in any order: verify_attempt_logs tells whether they fit.
    RETURN NEW;
  END IF;
  -- What this row follows: an opening the closing of the attempt before, a closing its opening.
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
    -- The primary key or the CHECK refuses it.
    RETURN NEW;
  END IF;
  IF NEW.phase = 'OPEN' AND v_before IS NULL AND NEW.attempt_no <> 1
    OR NEW.phase = 'OPEN' AND v_before ->> 'outcome' = 'SUCCEEDED'
    OR NEW.phase = 'CLOSE' AND v_before IS NULL THEN
    PERFORM orchestration.meet_newer_attempts(TG_TABLE_NAME, NEW.instruction_id);
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401',
      CASE
        WHEN NEW.phase = 'CLOSE' THEN 'an attempt is closed after it was opened'
        WHEN v_before IS NULL THEN 'an attempt is opened after the one before was closed'
        ELSE 'no attempt follows one that SUCCEEDED'
      END,
      TG_TABLE_NAME, v_detail, 'Read the log: its last attempt may be open, or its end.',
      'attempt_no'
    );
  END IF;
  IF NEW.phase = 'CLOSE'
    AND (NEW.participant_id, NEW.worker_id, to_jsonb(NEW) ->> 'rail_type') IS DISTINCT FROM
      (v_before ->> 'participant_id', v_before ->> 'worker_id', v_before ->> 'rail_type') THEN
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401', 'the closing names another participant, worker or rail than the'
        ' opening', TG_TABLE_NAME, v_detail,
      'Leave them out of a closing: the database takes them from the opening.', 'worker_id'
    );
  END IF;
  IF NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp() THEN
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401', 'occurred_at is in the future', TG_TABLE_NAME,
      v_detail || jsonb_build_object('occurred_at', NEW.occurred_at),
      'Leave occurred_at out: the database sets it.', 'occurred_at'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attempt_log OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attempt_log FROM PUBLIC;
