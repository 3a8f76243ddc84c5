CREATE FUNCTION orchestration.guard_redrive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- What it follows may come later: verify_outbox finds a redrive that follows nothing.
    RETURN NULL;
  END IF;
  -- Whoever records a late result updates the instruction, so the look-up below is of the newest.
  PERFORM 1
  FROM orchestration.instructions n
  WHERE n.id = NEW.instruction_id
  FOR SHARE;
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i
    CROSS JOIN LATERAL (
      SELECT s.state, s.known_outcome
      FROM orchestration.payment_outbox_status s
      WHERE s.outbox_id = i.outbox_id
      OFFSET 0
    ) s
    WHERE i.outbox_id = NEW.redrive_of
      AND i.instruction_id = NEW.instruction_id
      AND i.idempotency_key = NEW.idempotency_key
      AND i.participant_id = NEW.participant_id
      AND i.redrive_no = NEW.redrive_no - 1
      AND i.rail_type = NEW.rail_type
      AND i.payload_salt = NEW.payload_salt
      AND i.payload_hash = NEW.payload_hash
      AND i.max_attempts = NEW.max_attempts
      AND s.state = 'FAILED'
      AND s.known_outcome IN ('REJECTED', 'NOT_SENT')
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-006', 'P7005',
      'a redrive follows an item that FAILED as REJECTED or NOT_SENT, with the same content',
      'payment_outbox_items',
      jsonb_build_object('outbox_id', NEW.outbox_id, 'redrive_no', NEW.redrive_no),
      'Redrive by redrive_outbox_item; what is UNKNOWN must be resolved first.', 'redrive_of'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_redrive OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_redrive FROM PUBLIC;
