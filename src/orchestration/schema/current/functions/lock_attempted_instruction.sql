CREATE FUNCTION orchestration.lock_attempted_instruction(p_instruction_id uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- One writer of an instruction's logs at a time. Who enqueues for the instruction waits until this
-- transaction ends.
BEGIN
  -- An enqueue of the same instruction waits for this lock while it holds a gate.
  PERFORM orchestration.bound_idle_time();
  PERFORM 1
  FROM orchestration.instructions i
  WHERE i.id = p_instruction_id
  FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the instruction does not exist', 'instructions',
      jsonb_build_object('id', p_instruction_id), 'Read the id again.', 'id'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.lock_attempted_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_attempted_instruction FROM PUBLIC;
