CREATE FUNCTION orchestration.guard_instruction_end() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- No item is open any more: the foreign key of payment_outbox_pending has judged that first.
DECLARE
  v_sent bigint;
  v_unknown bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- Its items and attempts may come later: verify_outbox finds an end that they deny.
    RETURN NULL;
  END IF;
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    -- What an older snapshot does not see has moved the participant's row or ended a pending one.
    PERFORM 1
    FROM orchestration.participant_outbox_sequences s
    WHERE s.participant_id = OLD.participant_id
    FOR SHARE;
    IF NOT FOUND THEN
      -- A row made since is not seen either, but it is in the way: 40001.
      INSERT INTO orchestration.participant_outbox_sequences (participant_id)
      VALUES (OLD.participant_id)
      ON CONFLICT (participant_id) DO NOTHING;
    END IF;
    PERFORM 1
    FROM orchestration.payment_outbox_pending p
    WHERE p.instruction_id = OLD.id
    ORDER BY p.outbox_id
    FOR KEY SHARE;
  END IF;
  SELECT count(*) FILTER (WHERE s.state = 'DISPATCHED' OR s.known_outcome = 'SENT'),
         count(*) FILTER (WHERE s.known_outcome = 'UNKNOWN')
  INTO v_sent, v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = OLD.id;
  IF NEW.state = 'COMPLETED' AND v_sent = 0
    OR NEW.state = 'FAILED' AND v_sent + v_unknown > 0 THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      CASE
        WHEN NEW.state = 'COMPLETED'
          THEN 'COMPLETED needs an item that was DISPATCHED or resolved as SENT'
        WHEN v_sent > 0 THEN 'FAILED needs that no item was DISPATCHED or resolved as SENT'
        ELSE 'FAILED needs that the outcome of every item is known'
      END,
      'instructions',
      jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state,
        'sent', v_sent, 'unknown', v_unknown),
      CASE WHEN v_unknown > 0
        THEN 'Find out what the rail did and resolve the item first: payment_outbox_unresolved shows'
          ' it.'
        ELSE 'Read payment_outbox_status of the instruction.'
      END, 'state'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_instruction_end OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction_end FROM PUBLIC;
