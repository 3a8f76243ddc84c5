CREATE FUNCTION orchestration.guard_redrive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_copy orchestration.payment_outbox_items;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The initial copy of a subscription loads rows in no order. verify_outbox finds a redrive that
    -- has no predecessor.
    RETURN NULL;
  END IF;
  -- A transaction that records a late result updates the instruction, so the look-up below sees the
  -- newest result.
  PERFORM 1
  FROM orchestration.instructions n
  WHERE n.id = NEW.instruction_id
  FOR SHARE;
  SELECT i.* INTO v_copy
  FROM orchestration.payment_outbox_items i
  CROSS JOIN LATERAL (
    SELECT s.state, s.known_outcome
    FROM orchestration.payment_outbox_status s
    WHERE s.outbox_id = i.outbox_id
    OFFSET 0
  ) s
  WHERE i.outbox_id = NEW.redrive_of
    AND s.state = 'FAILED'
    AND s.known_outcome IN ('REJECTED', 'NOT_SENT');
  -- These columns may differ. All others must be those of the predecessor, also columns that are
  -- added later.
  v_copy.outbox_id := NEW.outbox_id;
  v_copy.sequence_id := NEW.sequence_id;
  v_copy.redrive_no := v_copy.redrive_no + 1;
  v_copy.redrive_of := NEW.redrive_of;
  v_copy.created_at := NEW.created_at;
  v_copy.db_user := NEW.db_user;
  v_copy.xact_id := NEW.xact_id;
  IF v_copy IS DISTINCT FROM NEW THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005',
      'a redrive must copy a FAILED item with the outcome REJECTED or NOT_SENT',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', NEW.outbox_id, 'redrive_no', NEW.redrive_no),
      'Use redrive_outbox_item. If the outcome is UNKNOWN, resolve the item first.', 'redrive_of'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_redrive OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_redrive FROM PUBLIC;
