CREATE FUNCTION orchestration.redrive_outbox_item(p_outbox_id uuid)
RETURNS SETOF orchestration.payment_outbox_item_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it must lock the instruction, the participant and the pending row in
-- this order before it can decide between a redrive, a replay and a refusal.
DECLARE
  v_item orchestration.payment_outbox_items;
  v_newest orchestration.payment_outbox_items;
  v_state text;
  v_open boolean;
  v_unresolved integer;
  v_outcome text;
  v_sequence_id bigint;
  v_result orchestration.payment_outbox_item_result;
  v_replayed boolean := true;
BEGIN
  SELECT i.* INTO v_item
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p_outbox_id;
  IF v_item.outbox_id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- Lock the instruction before the participant's row, as enqueue_payment_outbox does.
  SELECT i.state, i.open, i.unresolved INTO v_state, v_open, v_unresolved
  FROM orchestration.instructions i
  WHERE i.id = v_item.instruction_id
  FOR SHARE;
  IF NOT v_open THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      format('the instruction must be AUTHORIZED or EXECUTING, but is %s', v_state),
      'instructions',
      jsonb_build_object('id', v_item.instruction_id, 'state', v_state,
        'outbox_id', p_outbox_id),
      'If the instruction has ended, receive a new instruction.', 'state'
    );
  END IF;
  -- The lock on the participant's row makes redrives of one item wait for each other.
  v_sequence_id := orchestration.bump_participant_outbox_seq(v_item.participant_id);
  SELECT i.* INTO v_newest
  FROM orchestration.payment_outbox_items i
  WHERE i.instruction_id = v_item.instruction_id AND i.idempotency_key = v_item.idempotency_key
  ORDER BY i.redrive_no DESC
  LIMIT 1;
  -- Under an older snapshot a finished item would look live. Its pending row was deleted since, so
  -- the lock raises 40001.
  PERFORM 1
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = v_newest.outbox_id
  FOR UPDATE;
  SELECT t.state, s.known_outcome INTO v_state, v_outcome
  FROM orchestration.payment_outbox_attempts t
  CROSS JOIN LATERAL (
    SELECT s.known_outcome
    FROM orchestration.payment_outbox_status s
    WHERE s.outbox_id = t.outbox_id
    OFFSET 0
  ) s
  WHERE t.outbox_id = v_newest.outbox_id AND t.state IN ('DISPATCHED', 'FAILED');
  IF v_newest.outbox_id = p_outbox_id
    AND v_state = 'FAILED' AND v_outcome IN ('REJECTED', 'NOT_SENT') THEN
    IF v_unresolved > 0 THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is unknown',
        'instructions',
        jsonb_build_object('id', v_item.instruction_id, 'unresolved', v_unresolved,
          'outbox_id', p_outbox_id),
        'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows it.',
        'unresolved'
      );
    END IF;
    v_replayed := false;
    -- Copy the whole row, so that no content column can be forgotten. guard_redrive names the same
    -- columns as different.
    v_newest := v_item;
    v_newest.outbox_id := orchestration.uuid_v7();
    v_newest.sequence_id := v_sequence_id;
    v_newest.redrive_no := v_item.redrive_no + 1;
    v_newest.redrive_of := v_item.outbox_id;
    v_newest.created_at := clock_timestamp();
    v_newest.db_user := SESSION_USER;
    v_newest.xact_id := pg_current_xact_id()::text::bigint;
    WITH stored AS (
      INSERT INTO orchestration.payment_outbox_items
      SELECT v_newest.*
    )
    INSERT INTO orchestration.payment_outbox_pending (
      outbox_id, instruction_id, participant_id, sequence_id, rail_type
    )
    VALUES (
      v_newest.outbox_id, v_newest.instruction_id, v_newest.participant_id, v_newest.sequence_id,
      v_newest.rail_type
    );
  ELSIF v_newest.outbox_id = p_outbox_id OR v_state IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005', 'only a FAILED item with the outcome REJECTED or NOT_SENT can be redriven',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id, 'newest', v_newest.outbox_id,
        'state', coalesce(v_state, 'PENDING'), 'outcome', v_outcome),
      'Redrive the newest item of the key after it is known that the payment was not made.',
      'outbox_id'
    );
  END IF;
  SELECT r.* INTO v_result
  FROM orchestration.payment_outbox_item_result r
  WHERE r.outbox_id = v_newest.outbox_id;
  v_result.replayed := v_replayed;
  RETURN NEXT v_result;
END
$$;

ALTER FUNCTION orchestration.redrive_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.redrive_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.redrive_outbox_item TO symphony_control;
