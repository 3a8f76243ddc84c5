CREATE OR REPLACE FUNCTION orchestration.guard_instruction_end()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- No item is open any more: the foreign key of payment_outbox_pending has judged that first.
DECLARE
  v_dispatched bigint;
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
  SELECT count(*) FILTER (WHERE t.state = 'DISPATCHED'),
         count(*) FILTER (WHERE t.outcome = 'UNKNOWN')
  INTO v_dispatched, v_unknown
  FROM orchestration.payment_outbox_items i
  JOIN orchestration.payment_outbox_attempts t
    ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
  WHERE i.instruction_id = OLD.id;
  IF NEW.state = 'COMPLETED' AND v_dispatched = 0
    OR NEW.state = 'FAILED' AND v_dispatched + v_unknown > 0 THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-006', 'P7404',
      CASE NEW.state
        WHEN 'COMPLETED' THEN 'COMPLETED needs an item that was DISPATCHED'
        ELSE 'FAILED needs that no item was DISPATCHED and none is UNKNOWN'
      END,
      'instructions',
      jsonb_build_object('id', OLD.id, 'from', OLD.state, 'to', NEW.state,
        'dispatched', v_dispatched, 'unknown', v_unknown),
      'Read payment_outbox_status of the instruction.', 'state'
    );
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
