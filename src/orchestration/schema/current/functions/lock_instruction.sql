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
-- The instruction, if it still is what the caller has seen and not yet what it is to become. Its
-- whole lock at once: growing, it would deadlock with a unit that enqueues and then starts.
-- If this login has already done the same transition from this version, the row is returned as that
-- transition left it, with replayed set, and the caller does nothing more.
DECLARE
  v_instruction orchestration.instruction_result;
  v_done orchestration.status_history;
BEGIN
  -- An enqueue of the same instruction waits for this lock while it holds a gate.
  PERFORM orchestration.bound_idle_time();
  SELECT i.*, false INTO v_instruction
  FROM orchestration.instructions i
  WHERE i.id = p_id
  FOR UPDATE;
  IF v_instruction.id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the instruction does not exist', 'instructions',
      jsonb_build_object('id', p_id), 'Read the id again.', 'id'
    );
  END IF;
  IF v_instruction.version > p_version THEN
    -- As bigint: the caller's version may be the largest integer.
    SELECT h.* INTO v_done
    FROM orchestration.status_history h
    WHERE h.instruction_id = p_id
      AND h.version = p_version::bigint + 1
      AND h.to_state = p_state
      AND h.reason IS NOT DISTINCT FROM p_reason
      AND h.db_user = SESSION_USER;
    IF FOUND THEN
      -- Not as the row is now: a unit that authorizes and then starts with the version it got back
      -- can be repeated as a whole.
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
      format('the instruction is at version %s', v_instruction.version), 'instructions',
      jsonb_build_object('id', p_id, 'version', v_instruction.version, 'given', p_version,
        'state', v_instruction.state),
      'Read it again and decide anew.', 'version'
    );
  END IF;
  IF v_instruction.state = p_state THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-001', 'P7401', format('the instruction is %s already', p_state), 'instructions',
      jsonb_build_object('id', p_id, 'from', p_state, 'to', p_state),
      'Nothing is left to do: each transition happens once.', 'state'
    );
  END IF;
  RETURN NEXT v_instruction;
END
$$;

ALTER FUNCTION orchestration.lock_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_instruction FROM PUBLIC;
