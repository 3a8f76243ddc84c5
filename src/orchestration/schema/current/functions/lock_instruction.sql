CREATE OR REPLACE FUNCTION orchestration.lock_instruction(p_id uuid, p_version integer, p_state text)
 RETURNS SETOF orchestration.instructions
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- The instruction, if it still is what the caller has seen and not yet what it is to become. Its
-- whole lock at once: growing, it would deadlock with a unit that enqueues and then starts.
DECLARE
  v_instruction orchestration.instructions;
BEGIN
  SELECT i.* INTO v_instruction
  FROM orchestration.instructions i
  WHERE i.id = p_id
  FOR UPDATE;
  IF v_instruction.id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the instruction does not exist', 'instructions',
      jsonb_build_object('id', p_id), 'Read the id again.', 'id'
    );
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
$function$;
-- owner: symphony_owner
