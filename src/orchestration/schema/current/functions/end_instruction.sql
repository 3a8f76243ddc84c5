CREATE FUNCTION orchestration.end_instruction(
  p_id uuid,
  p_version integer,
  p_state text,
  p_reason text
) RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
BEGIN
  IF p_state = 'FAILED' AND coalesce(p_reason, '') = '' THEN
    -- Checked here because the error of the CHECK constraint would print the whole row, with its
    -- accounts and payload.
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'instructions',
      jsonb_build_object('id', p_id), 'Pass the reason for the failure in p_reason.', 'reason'
    );
  END IF;
  PERFORM orchestration.refuse_long_texts('instructions', ARRAY['reason'], ARRAY[p_reason], 4000);
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, p_state, p_reason) l;
  IF v_instruction.replayed THEN
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i
  SET state = p_state, reason = p_reason
  WHERE i.id = p_id
  RETURNING i.*, false;
EXCEPTION
  -- The foreign key of payment_outbox_pending rejects the change if an item is pending, even if
  -- another transaction enqueues it at the same time.
  WHEN foreign_key_violation THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404', 'the instruction still has a pending item', 'instructions',
      jsonb_build_object('id', p_id, 'to', p_state),
      'Wait until its items are DISPATCHED or FAILED. payment_outbox_status lists them.',
      'state'
    );
END
$$;

ALTER FUNCTION orchestration.end_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.end_instruction FROM PUBLIC;
