CREATE FUNCTION orchestration.guard_outbox_items() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- Its pending row and the items before it come by themselves: verify_outbox finds what is amiss.
    RETURN NULL;
  END IF;
  -- The lock makes an insert by hand wait for a completion that ends UNKNOWN, and answers an older
  -- snapshot with 40001. enqueue_payment_outbox and redrive_outbox_item already have it.
  SELECT n.instruction_id, i.unresolved
  INTO v_bad
  FROM (SELECT DISTINCT n.instruction_id FROM inserted n ORDER BY n.instruction_id OFFSET 0) n
  CROSS JOIN LATERAL (
    SELECT i.unresolved
    FROM orchestration.instructions i
    WHERE i.id = n.instruction_id
    FOR SHARE
  ) i
  ORDER BY i.unresolved DESC
  LIMIT 1;
  IF v_bad.unresolved > 0 THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is unknown',
      'instructions',
      jsonb_build_object('id', v_bad.instruction_id, 'unresolved', v_bad.unresolved),
      'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows it.',
      'unresolved'
    );
  END IF;
  SELECT n.outbox_id,
         n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id OR n.created_at > v_now AS forged
  INTO v_bad
  FROM inserted n
  WHERE n.db_user <> SESSION_USER
    OR n.xact_id <> v_xact_id
    OR n.created_at > v_now
    OR NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = n.outbox_id
      OFFSET 0
    )
  LIMIT 1;
  IF NOT FOUND THEN
    -- A counter that is ahead of its items is for verify_outbox to find.
    SELECT p.participant_id, p.first, p.last, p.items
    INTO v_bad
    FROM (
      SELECT n.participant_id,
             min(n.sequence_id) AS first,
             max(n.sequence_id) AS last,
             count(*) AS items
      FROM inserted n
      GROUP BY n.participant_id
    ) p
    WHERE p.last - p.first <> p.items - 1
      OR p.first > 1
        AND NOT EXISTS (
          SELECT FROM orchestration.payment_outbox_items i
          WHERE i.participant_id = p.participant_id AND i.sequence_id = p.first - 1
          OFFSET 0
        )
        AND NOT EXISTS (
          SELECT FROM orchestration.participant_outbox_sequences s
          WHERE s.participant_id = p.participant_id AND s.next_sequence_id = p.first
          OFFSET 0
        )
    LIMIT 1;
    IF FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-007', '22023', 'the numbers do not follow the participant''s last one',
        'payment_outbox_items',
        jsonb_build_object('participant_id', v_bad.participant_id, 'first', v_bad.first,
          'last', v_bad.last, 'items', v_bad.items),
        'Leave sequence_id out: the database numbers.', 'sequence_id'
      );
    END IF;
    RETURN NULL;
  END IF;
  IF v_bad.forged THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-001', '22023', 'who wrote an item and when is the database''s to say',
      'payment_outbox_items', jsonb_build_object('outbox_id', v_bad.outbox_id),
      'Leave created_at, db_user and xact_id out.', 'db_user'
    );
  END IF;
  PERFORM orchestration.raise_invariant(
    'INV-OUT-009', 'P7006', 'an item enters together with its pending row',
    'payment_outbox_items', jsonb_build_object('outbox_id', v_bad.outbox_id),
    'Enqueue by enqueue_payment_outbox.', 'outbox_id'
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_items OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_items FROM PUBLIC;
