CREATE FUNCTION orchestration.guard_outbox_items() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The function is long because it checks one statement's items as a whole, in three queries: their
-- instructions, each item, and the numbers of each participant.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied pending row and the earlier items arrive separately. verify_outbox reports what is
    -- missing.
    RETURN NULL;
  END IF;
  -- The lock makes an INSERT by hand wait for a completion that ends UNKNOWN, and raises 40001 if
  -- the snapshot is older. enqueue_payment_outbox and redrive_outbox_item have taken it already.
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
      'INV-OUT-010', 'P7404', 'the instruction has an item whose outcome is UNKNOWN',
      'instructions',
      jsonb_build_object('id', v_bad.instruction_id, 'unresolved', v_bad.unresolved),
      'Find out what the rail did, then use resolve_outbox_item. payment_outbox_unresolved lists'
        ' the items.',
      'unresolved'
    );
  END IF;
  SELECT n.outbox_id, f.forged
  INTO v_bad
  FROM inserted n
  CROSS JOIN LATERAL (
    SELECT n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id OR n.created_at > v_now AS forged,
           NOT EXISTS (
             SELECT FROM orchestration.payment_outbox_pending p
             WHERE p.outbox_id = n.outbox_id
             OFFSET 0
           ) AS not_pending
  ) f
  WHERE f.forged OR f.not_pending
  LIMIT 1;
  IF FOUND THEN
    CASE
      WHEN v_bad.forged THEN
        PERFORM orchestration.raise_invariant(
          'INV-OUT-001', '22023', 'db_user, xact_id and created_at are set by the database',
          'payment_outbox_items', jsonb_build_object('outbox_id', v_bad.outbox_id),
          'Leave db_user, xact_id and created_at out.', 'db_user'
        );
      ELSE
        PERFORM orchestration.raise_invariant(
          'INV-OUT-009', 'P7006', 'the item has no pending row', 'payment_outbox_items',
          jsonb_build_object('outbox_id', v_bad.outbox_id),
          'Use enqueue_payment_outbox: it inserts both rows in one statement.', 'outbox_id'
        );
    END CASE;
    RETURN NULL;
  END IF;
  -- A counter that is ahead of the items passes here: verify_outbox reports it.
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
  CROSS JOIN LATERAL (
    SELECT p.last - p.first <> p.items - 1 AS has_gap,
           p.first > 1
             AND NOT EXISTS (
               SELECT FROM orchestration.payment_outbox_items i
               WHERE i.participant_id = p.participant_id AND i.sequence_id = p.first - 1
               OFFSET 0
             )
             AND NOT EXISTS (
               SELECT FROM orchestration.participant_outbox_sequences s
               WHERE s.participant_id = p.participant_id AND s.next_sequence_id = p.first
               OFFSET 0
             ) AS not_next
  ) f
  WHERE f.has_gap OR f.not_next
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-007', '22023', 'sequence_id does not continue the numbers of the participant',
      'payment_outbox_items',
      jsonb_build_object('participant_id', v_bad.participant_id, 'first', v_bad.first,
        'last', v_bad.last, 'items', v_bad.items),
      'Leave sequence_id out: the database sets it.', 'sequence_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_items OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_items FROM PUBLIC;
