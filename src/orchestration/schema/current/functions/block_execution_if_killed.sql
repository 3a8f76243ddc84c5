CREATE FUNCTION orchestration.block_execution_if_killed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- Argument of the trigger: the scope. After the rows, so that a replay that stored nothing is not
-- judged; the functions have taken the gate before their other locks already.
DECLARE
  v_participant_ids text[];
  v_rail_types text[];
BEGIN
  -- What a subscription brings was written before the switch engaged, or it would not be there.
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    RETURN NULL;
  END IF;
  IF TG_LEVEL = 'STATEMENT' THEN
    -- A redrive is an act of control, and closing an attempt ends what was begun: neither is
    -- gated, nor does it hold the gate.
    IF TG_TABLE_NAME = 'payment_outbox_items' THEN
      IF NOT EXISTS (SELECT FROM inserted n WHERE n.redrive_no = 0) THEN
        RETURN NULL;
      END IF;
    ELSIF TG_TABLE_NAME = 'payment_outbox_attempts' THEN
      IF NOT EXISTS (SELECT FROM inserted n WHERE n.phase = 'OPEN') THEN
        RETURN NULL;
      END IF;
      -- A cancellation opens and closes its attempt in one statement: nothing is dispatched.
      IF EXISTS (SELECT FROM inserted c WHERE c.error_code = 'CANCELLED')
        AND NOT EXISTS (
          SELECT FROM inserted n
          WHERE n.phase = 'OPEN'
            AND NOT EXISTS (
              SELECT FROM inserted c
              WHERE c.outbox_id = n.outbox_id
                AND c.attempt_no = n.attempt_no
                AND c.state = 'FAILED'
                AND c.error_code = 'CANCELLED'
                AND c.requested_state IS NULL
            )
        ) THEN
        RETURN NULL;
      END IF;
    ELSIF NOT EXISTS (SELECT FROM inserted) THEN
      RETURN NULL;
    END IF;
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  IF NOT EXISTS (
    SELECT FROM orchestration.kill_switches k WHERE k.scope IN ('PARTICIPANT', 'RAIL')
  ) THEN
    NULL;
  ELSIF TG_LEVEL = 'ROW' THEN
    v_participant_ids := ARRAY[NEW.participant_id];
  ELSIF TG_TABLE_NAME = 'instructions' THEN
    SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids FROM inserted n;
  ELSIF TG_TABLE_NAME = 'payment_outbox_items' THEN
    SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids
    FROM inserted n
    WHERE n.redrive_no = 0;
  ELSIF TG_TABLE_NAME = 'payment_outbox_attempts' THEN
    SELECT array_agg(DISTINCT p.participant_id), array_agg(DISTINCT p.rail_type)
    INTO v_participant_ids, v_rail_types
    FROM inserted n
    CROSS JOIN LATERAL (
      SELECT p.participant_id, p.rail_type
      FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = n.outbox_id
      OFFSET 0
    ) p
    WHERE n.phase = 'OPEN';
  END IF;
  PERFORM orchestration.refuse_if_killed(TG_ARGV[0], v_participant_ids, v_rail_types);
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.block_execution_if_killed OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.block_execution_if_killed FROM PUBLIC;
