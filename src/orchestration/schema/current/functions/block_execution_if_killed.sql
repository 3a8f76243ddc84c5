CREATE FUNCTION orchestration.block_execution_if_killed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- Longer than 70 lines because a query over a transition table cannot be in a function of its own.
-- Arguments of the trigger: the stage that the table belongs to, and which rows are gated.
--   (none)      every row; the rows have no participant
--   'EACH'      every row; participant_id is its participant
--   'ENQUEUED'  the rows with redrive_no = 0, because a redrive is an act of control
--   'OPENED'    the rows that open an attempt, because closing one ends work that has begun; a third
--               argument names the table that has participant_id and rail_type by outbox_id
-- The trigger fires after the insert, so that a replay, which stores nothing, is not checked. The
-- functions share the gate before they take any other lock.
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_rows text := coalesce(TG_ARGV[1], '');
  v_gated boolean;
  v_participant_ids text[];
  v_rail_types text[];
BEGIN
  -- A row that a subscription copies was checked on the server where it was written.
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    RETURN NULL;
  END IF;
  -- Return before the gate is shared if no row is gated.
  IF TG_LEVEL = 'ROW' THEN
    v_gated := true;
  ELSIF v_rows = 'ENQUEUED' THEN
    v_gated := EXISTS (SELECT FROM inserted n WHERE n.redrive_no = 0);
  ELSIF v_rows = 'OPENED' THEN
    v_gated := EXISTS (SELECT FROM inserted n WHERE n.phase = 'OPEN');
    IF v_gated AND EXISTS (SELECT FROM inserted c WHERE c.error_code = 'CANCELLED') THEN
      -- A cancellation opens and closes its attempt in one statement and dispatches nothing.
      v_gated := EXISTS (
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
      );
    END IF;
  ELSE
    v_gated := EXISTS (SELECT FROM inserted);
  END IF;
  IF NOT v_gated THEN
    RETURN NULL;
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Collect the participants and rails only if a switch for one of them was ever engaged.
  IF v_rows <> '' AND EXISTS (
    SELECT FROM orchestration.kill_switches k WHERE k.scope IN ('PARTICIPANT', 'RAIL')
  ) THEN
    IF TG_LEVEL = 'ROW' THEN
      v_participant_ids := ARRAY[NEW.participant_id];
    ELSIF v_rows = 'EACH' THEN
      SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids FROM inserted n;
    ELSIF v_rows = 'ENQUEUED' THEN
      SELECT array_agg(DISTINCT n.participant_id) INTO v_participant_ids
      FROM inserted n
      WHERE n.redrive_no = 0;
    ELSE
      -- OFFSET 0 keeps this an index look-up per row whatever the table's statistics say.
      EXECUTE format(
        'SELECT array_agg(DISTINCT p.participant_id), array_agg(DISTINCT p.rail_type)'
        ' FROM inserted n'
        ' CROSS JOIN LATERAL ('
        '   SELECT p.participant_id, p.rail_type'
        '   FROM orchestration.%I p'
        '   WHERE p.outbox_id = n.outbox_id'
        '   OFFSET 0'
        ' ) p'
        ' WHERE n.phase = ''OPEN''',
        TG_ARGV[2]
      ) INTO v_participant_ids, v_rail_types;
    END IF;
  END IF;
  PERFORM orchestration.refuse_if_killed(TG_ARGV[0], v_participant_ids, v_rail_types);
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.block_execution_if_killed OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.block_execution_if_killed FROM PUBLIC;
