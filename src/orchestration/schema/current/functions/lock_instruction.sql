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
REVOKE EXECUTE ON FUNCTION orchestration.lock_instruction FROM PUBLIC;
