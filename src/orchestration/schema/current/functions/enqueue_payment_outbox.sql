CREATE FUNCTION orchestration.enqueue_payment_outbox(p_items jsonb)
RETURNS SETOF orchestration.payment_outbox_item_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_mergejoin = off
AS $$
-- enable_seqscan and enable_mergejoin are off because the session keeps the first plan. A plan that
-- was made while a table was empty would still read the whole table after it has grown.
-- The function is long because it must check the whole batch before it takes a lock, then lock in
-- one order, and only then look keys and numbers up.
#variable_conflict use_column
DECLARE
  v_items orchestration.new_outbox_item[];
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_now timestamptz;
  v_instructions bigint;
  v_open bigint;
  v_stored bigint;
  v_bad record;
  v_other record;
BEGIN
  IF jsonb_typeof(p_items) IS DISTINCT FROM 'array' OR jsonb_array_length(p_items) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_items must be an array of 0 to 10,000 objects',
      'payment_outbox_items', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_items) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_items must be at most 64 MiB',
      'payment_outbox_items', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_items := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_outbox_item, p_items) AS r
    );
    SELECT t.ordinality, t.missing, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN r.instruction_id IS NULL THEN 'instruction_id'
               WHEN r.participant_id IS NULL THEN 'participant_id'
               WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
               WHEN r.rail_type IS NULL THEN 'rail_type'
               WHEN r.payload IS NULL THEN 'payload'
             END AS missing,
             CASE
               WHEN octet_length(r.participant_id) NOT BETWEEN 1 AND 1000 THEN 'participant_id'
               WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
               WHEN octet_length(r.rail_type) NOT BETWEEN 1 AND 1000 THEN 'rail_type'
               WHEN r.max_attempts NOT BETWEEN 1 AND 1000 THEN 'max_attempts'
               WHEN NOT orchestration.is_storable_payload(r.payload) THEN 'payload'
               WHEN octet_length(r.context::text) > 8192
                 OR NOT orchestration.is_storable_payload(r.context) THEN 'context'
             END AS malformed
      FROM unnest(v_items) WITH ORDINALITY AS r
    ) t
    WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('payment_outbox_items', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'payment_outbox_items', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  SELECT r.instruction_id, r.idempotency_key, r.due_at INTO v_other
  FROM unnest(v_items) AS r
  WHERE r.due_at > clock_timestamp() + interval '400 days'
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'due_at must be at most 400 days ahead', 'payment_outbox_pending',
      jsonb_build_object('instruction_id', v_other.instruction_id,
        'idempotency_key', v_other.idempotency_key, 'due_at', v_other.due_at),
      'Enqueue the item later, when it is due within 400 days.', 'next_attempt_at'
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Lock the instructions first, in one order. Until this transaction ends, none of them can end
  -- and no completion can make an outcome unknown. FOR KEY SHARE would not be enough: such a
  -- completion updates the row but not its keys.
  SELECT count(*),
         count(*) FILTER (
           WHERE i.open AND i.unresolved = 0 AND i.participant_id = r.participant_id)
  INTO v_instructions, v_open
  FROM (
    SELECT DISTINCT r.instruction_id, r.participant_id
    FROM unnest(v_items) AS r
    ORDER BY r.instruction_id
    OFFSET 0
  ) r
  LEFT JOIN LATERAL (
    SELECT i.participant_id, i.open, i.unresolved
    FROM orchestration.instructions i
    WHERE i.id = r.instruction_id
    FOR SHARE
  ) i ON true;
  IF v_open < v_instructions THEN
    -- A replay returns its item even if the instruction has ended since.
    SELECT r.instruction_id, r.participant_id, r.idempotency_key, i.state, i.open, i.unresolved
    INTO v_other
    FROM unnest(v_items) WITH ORDINALITY AS r
    LEFT JOIN orchestration.instructions i
      ON i.id = r.instruction_id AND i.participant_id = r.participant_id
    WHERE (i.open AND i.unresolved = 0) IS NOT TRUE
      AND r.instruction_id IS NOT NULL
      AND r.participant_id IS NOT NULL
      AND NOT EXISTS (
        SELECT FROM orchestration.payment_outbox_items o
        WHERE o.instruction_id = r.instruction_id AND o.idempotency_key = r.idempotency_key
        OFFSET 0
      )
    ORDER BY r.ordinality
    LIMIT 1;
    IF FOUND AND v_other.state IS NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-005', '23503', 'the participant has no such instruction',
        'instructions',
        jsonb_build_object('id', v_other.instruction_id,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Receive and authorize the instruction first.', 'id'
      );
    ELSIF FOUND AND v_other.open THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is unknown',
        'instructions',
        jsonb_build_object('id', v_other.instruction_id, 'unresolved', v_other.unresolved,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows it.',
        'unresolved'
      );
    ELSIF FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-006', 'P7404',
        format('the instruction must be AUTHORIZED or EXECUTING, but is %s', v_other.state),
        'instructions',
        jsonb_build_object('id', v_other.instruction_id, 'state', v_other.state,
          'participant_id', v_other.participant_id, 'idempotency_key', v_other.idempotency_key),
        'Authorize the instruction first. If it has ended, receive a new instruction.', 'state'
      );
    END IF;
  END IF;
  -- Lock the row of each participant in one order, and insert the missing rows. Another enqueue for
  -- the same participant waits here, so it looks keys and numbers up only after this one has ended.
  IF EXISTS (
    SELECT FROM unnest(v_items) AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = r.participant_id
      OFFSET 0
    )
  ) THEN
    INSERT INTO orchestration.participant_outbox_sequences AS s (participant_id)
    SELECT DISTINCT r.participant_id
    FROM unnest(v_items) AS r
    ORDER BY r.participant_id
    ON CONFLICT (participant_id) DO UPDATE SET next_sequence_id = s.next_sequence_id;
  ELSE
    PERFORM 1
    FROM (
      SELECT DISTINCT r.participant_id
      FROM unnest(v_items) AS r
      ORDER BY r.participant_id
      OFFSET 0
    ) r
    CROSS JOIN LATERAL (
      SELECT 1
      FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = r.participant_id
      FOR NO KEY UPDATE
    ) s;
  END IF;

  v_now := clock_timestamp();
  WITH fresh AS MATERIALIZED (
    SELECT DISTINCT ON (r.instruction_id, r.idempotency_key) r.*
    FROM unnest(v_items) WITH ORDINALITY AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items i
      WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
      OFFSET 0
    )
    ORDER BY r.instruction_id, r.idempotency_key, r.ordinality
  ), first_free AS MATERIALIZED (
    SELECT f.participant_id,
           greatest(
             s.next_sequence_id,
             (SELECT max(i.sequence_id) + 1
              FROM orchestration.payment_outbox_items i
              WHERE i.participant_id = f.participant_id)
           ) AS sequence_id
    FROM (SELECT DISTINCT participant_id FROM fresh) f
    CROSS JOIN LATERAL (
      SELECT s.next_sequence_id
      FROM orchestration.participant_outbox_sequences s
      WHERE s.participant_id = f.participant_id
      OFFSET 0
    ) s
  ), numbered AS MATERIALIZED (
    SELECT f.*,
           orchestration.uuid_v7() AS outbox_id,
           uuid_send(gen_random_uuid()) AS payload_salt,
           n.sequence_id - 1
             + row_number() OVER (PARTITION BY f.participant_id ORDER BY f.ordinality) AS sequence_id
    FROM fresh f
    JOIN first_free n ON n.participant_id = f.participant_id
    ORDER BY f.ordinality
  ), stored AS (
    INSERT INTO orchestration.payment_outbox_items (
      outbox_id, instruction_id, participant_id, sequence_id, idempotency_key, rail_type,
      payload, payload_salt, payload_hash, max_attempts, context
    )
    SELECT n.outbox_id, n.instruction_id, n.participant_id, n.sequence_id, n.idempotency_key,
           n.rail_type, n.payload, n.payload_salt,
           encode(sha256('orchestration.payload.v1'::bytea || n.payload_salt
             || convert_to(n.payload::text, 'UTF8')), 'hex'),
           coalesce(n.max_attempts, 20), nullif(n.context, 'null')
    FROM numbered n
    ON CONFLICT (instruction_id, idempotency_key, redrive_no) DO NOTHING
    RETURNING outbox_id
  ), pending AS (
    INSERT INTO orchestration.payment_outbox_pending (
      outbox_id, instruction_id, participant_id, sequence_id, rail_type, next_attempt_at
    )
    SELECT n.outbox_id, n.instruction_id, n.participant_id, n.sequence_id, n.rail_type,
           coalesce(n.due_at, clock_timestamp())
    FROM numbered n
    JOIN stored s ON s.outbox_id = n.outbox_id
  )
  SELECT count(*) INTO v_stored FROM stored;
  IF v_stored < jsonb_array_length(p_items) THEN
    SELECT i.outbox_id, i.instruction_id, i.idempotency_key
    INTO v_other
    FROM unnest(v_items) WITH ORDINALITY AS r
    CROSS JOIN LATERAL (
      SELECT i.*
      FROM orchestration.payment_outbox_items i
      WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
      ORDER BY i.redrive_no DESC
      LIMIT 1
    ) i
    WHERE (i.participant_id, i.rail_type, i.payload::text)
      IS DISTINCT FROM (r.participant_id, r.rail_type, r.payload::text)
    ORDER BY r.ordinality
    LIMIT 1;
    IF FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-004', 'P7004', 'the idempotency key was used with different content',
        'payment_outbox_items',
        jsonb_build_object('outbox_id', v_other.outbox_id,
          'instruction_id', v_other.instruction_id, 'idempotency_key', v_other.idempotency_key),
        'Use a new idempotency key for new content.', 'idempotency_key'
      );
    END IF;
  END IF;
  -- An element is a replay if another transaction, an earlier call of this transaction or an earlier
  -- element stored its item.
  RETURN QUERY
  SELECT s.*,
         i.xact_id <> v_xact_id
           OR s.created_at < v_now
           OR row_number() OVER (PARTITION BY s.outbox_id ORDER BY r.ordinality) > 1
  FROM unnest(v_items) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.outbox_id, i.xact_id
    FROM orchestration.payment_outbox_items i
    WHERE i.instruction_id = r.instruction_id AND i.idempotency_key = r.idempotency_key
    ORDER BY i.redrive_no DESC
    LIMIT 1
  ) i
  CROSS JOIN LATERAL (
    SELECT s.*
    FROM orchestration.payment_outbox_item_summary s
    WHERE s.outbox_id = i.outbox_id
    OFFSET 0
  ) s
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.enqueue_payment_outbox OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.enqueue_payment_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.enqueue_payment_outbox TO symphony_executor;
