CREATE FUNCTION orchestration.guard_instruction_end() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- No item of the instruction is pending here: the foreign key of payment_outbox_pending, whose
-- trigger fires before this one, has rejected an instruction that has one.
DECLARE
  v_sent bigint;
  v_unknown bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied items and attempts may arrive later. verify_outbox reports an end that
    -- contradicts them.
    RETURN NULL;
  END IF;
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    -- A concurrent enqueue or completion that this snapshot does not see has updated the
    -- participant's row or deleted a pending row. Locking these rows then raises 40001.
    PERFORM 1
    FROM orchestration.participant_outbox_sequences s
    WHERE s.participant_id = OLD.participant_id
    FOR SHARE;
    IF NOT FOUND THEN
      -- A participant's row that is newer than the snapshot is not visible either, but the INSERT
      -- conflicts with it and raises 40001.
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
          THEN 'state cannot become COMPLETED: no item was DISPATCHED or resolved as SENT'
        WHEN v_sent > 0
          THEN 'state cannot become FAILED: an item was DISPATCHED or resolved as SENT'
        ELSE 'state cannot become FAILED: the outcome of an item is UNKNOWN'
      END,
      'instructions',
      jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state,
        'sent', v_sent, 'unknown', v_unknown),
      CASE WHEN v_unknown > 0
        THEN 'Find out what the rail did, then use resolve_outbox_item. payment_outbox_unresolved'
          ' lists the items.'
        ELSE 'Check the items of the instruction in payment_outbox_status.'
      END, 'state'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_instruction_end OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_instruction_end FROM PUBLIC;
