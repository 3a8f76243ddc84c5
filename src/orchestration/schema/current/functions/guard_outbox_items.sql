CREATE OR REPLACE FUNCTION orchestration.guard_outbox_items()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
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
  SELECT n.outbox_id, n.instruction_id, n.idempotency_key, n.redrive_no,
         n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id OR n.created_at > v_now AS forged,
         NOT EXISTS (
           SELECT FROM orchestration.payment_outbox_pending p
           WHERE p.outbox_id = n.outbox_id
           OFFSET 0
         ) AS lost
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
    OR n.redrive_no > 0 AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items i
      JOIN orchestration.payment_outbox_attempts t ON t.outbox_id = i.outbox_id
      WHERE i.outbox_id = n.redrive_of
        AND i.instruction_id = n.instruction_id
        AND i.idempotency_key = n.idempotency_key
        AND i.participant_id = n.participant_id
        AND i.redrive_no = n.redrive_no - 1
        AND i.rail_type = n.rail_type
        AND i.payload_salt = n.payload_salt
        AND i.payload_hash = n.payload_hash
        AND i.max_attempts = n.max_attempts
        AND t.state = 'FAILED'
        AND t.outcome IN ('REJECTED', 'NOT_SENT')
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
  IF v_bad.lost THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'an item enters together with its pending row',
      'payment_outbox_items', jsonb_build_object('outbox_id', v_bad.outbox_id),
      'Enqueue by enqueue_payment_outbox.', 'outbox_id'
    );
  END IF;
  PERFORM orchestration.raise_invariant(
    'INV-OUT-006', 'P7005',
    'a redrive follows an item that FAILED as REJECTED or NOT_SENT, with the same content',
    'payment_outbox_items',
    jsonb_build_object('outbox_id', v_bad.outbox_id, 'redrive_no', v_bad.redrive_no),
    'Redrive by redrive_outbox_item; what is UNKNOWN must be resolved first.', 'redrive_of'
  );
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
