CREATE FUNCTION orchestration.guard_outbox_pending_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_outbox_id uuid;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- A copied row may have a lease. verify_outbox compares it with its item and attempts.
    RETURN NULL;
  END IF;
  -- The item must have been inserted by this transaction: no other transaction can have ended it.
  SELECT n.outbox_id INTO v_outbox_id
  FROM inserted n
  WHERE n.attempt_count <> 0
    OR n.lease_token IS NOT NULL
    OR NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = n.outbox_id
        AND i.instruction_id = n.instruction_id
        AND i.participant_id = n.participant_id
        AND i.sequence_id = n.sequence_id
        AND i.rail_type = n.rail_type
        AND i.xact_id = v_xact_id
      OFFSET 0
    )
    OR EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = n.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
      OFFSET 0
    )
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'a pending row must be inserted with its item and without a lease',
      'payment_outbox_pending', jsonb_build_object('outbox_id', v_outbox_id),
      'Use enqueue_payment_outbox: it inserts both rows in one statement.', 'outbox_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_insert OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_insert FROM PUBLIC;
