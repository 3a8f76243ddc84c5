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
REVOKE EXECUTE ON FUNCTION orchestration.lock_attempted_instruction FROM PUBLIC;
