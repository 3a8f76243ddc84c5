CREATE FUNCTION orchestration.redrive_outbox_item(p_outbox_id uuid)
RETURNS TABLE (
  outbox_id uuid,
  instruction_id uuid,
  participant_id text,
  sequence_id bigint,
  idempotency_key text,
  redrive_no integer,
  redrive_of uuid,
  rail_type text,
  payload_hash text,
  max_attempts integer,
  context jsonb,
  created_at timestamptz,
  db_user text,
  replayed boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  v_item orchestration.payment_outbox_items;
  v_newest orchestration.payment_outbox_items;
  v_state text;
  v_open boolean;
  v_unresolved integer;
  v_outcome text;
  v_sequence_id bigint;
  v_replayed boolean := true;
BEGIN
  SELECT i.* INTO v_item
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p_outbox_id;
  IF v_item.outbox_id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Read the id again.', 'outbox_id'
    );
  END IF;
  -- The instruction before the participant's row, as in enqueue_payment_outbox.
  SELECT i.state, i.open, i.unresolved INTO v_state, v_open, v_unresolved
  FROM orchestration.instructions i
  WHERE i.id = v_item.instruction_id
  FOR SHARE;
  IF NOT v_open THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      format('the instruction is %s: only an authorized one is dispatched', v_state),
      'instructions',
      jsonb_build_object('id', v_item.instruction_id, 'state', v_state,
        'outbox_id', p_outbox_id),
      'A new try of an ended instruction is a new instruction.', 'state'
    );
  END IF;
  -- The participant's row makes redrives of one item wait for each other.
  v_sequence_id := orchestration.bump_participant_outbox_seq(v_item.participant_id);
  SELECT i.* INTO v_newest
  FROM orchestration.payment_outbox_items i
  WHERE i.instruction_id = v_item.instruction_id AND i.idempotency_key = v_item.idempotency_key
  ORDER BY i.redrive_no DESC
  LIMIT 1;
  -- An older snapshot would judge a finished item as live: its pending row, gone since, answers
  -- 40001.
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
    WITH stored AS (
      INSERT INTO orchestration.payment_outbox_items (
        instruction_id, participant_id, sequence_id, idempotency_key, redrive_no, redrive_of,
        rail_type, payload, payload_salt, payload_hash, max_attempts, context
      )
      VALUES (
        v_item.instruction_id, v_item.participant_id, v_sequence_id, v_item.idempotency_key,
        v_item.redrive_no + 1, v_item.outbox_id,
        v_item.rail_type, v_item.payload, v_item.payload_salt, v_item.payload_hash,
        v_item.max_attempts, v_item.context
      )
      RETURNING *
    ), pending AS (
      INSERT INTO orchestration.payment_outbox_pending (
        outbox_id, instruction_id, participant_id, sequence_id, rail_type
      )
      SELECT s.outbox_id, s.instruction_id, s.participant_id, s.sequence_id, s.rail_type
      FROM stored s
    )
    SELECT s.* INTO v_newest FROM stored s;
  ELSIF v_newest.outbox_id = p_outbox_id OR v_state IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005', 'only an item that FAILED as REJECTED or NOT_SENT is redriven',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id, 'newest', v_newest.outbox_id,
        'state', coalesce(v_state, 'PENDING'), 'outcome', v_outcome),
      'Redrive the newest item of the key, once it is known that the payment was not made.',
      'outbox_id'
    );
  END IF;
  RETURN QUERY
  SELECT v_newest.outbox_id, v_newest.instruction_id, v_newest.participant_id,
         v_newest.sequence_id, v_newest.idempotency_key, v_newest.redrive_no,
         v_newest.redrive_of, v_newest.rail_type, v_newest.payload_hash,
         v_newest.max_attempts, v_newest.context, v_newest.created_at, v_newest.db_user,
         v_replayed;
END
$$;

ALTER FUNCTION orchestration.redrive_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.redrive_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.redrive_outbox_item TO symphony_control;
