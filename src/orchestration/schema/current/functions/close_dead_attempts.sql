CREATE FUNCTION orchestration.close_dead_attempts(p_outbox_ids uuid[])
RETURNS SETOF orchestration.payment_outbox_attempts
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- Takes pending rows that the caller has locked. Closes the attempts whose lease has expired,
-- deletes the rows whose item has ended, and removes the lease of the others.
-- The function is long because these three statements must run in this order on the same rows.
DECLARE
  v_now timestamptz := clock_timestamp();
BEGIN
  -- An item that has no attempt left ends here as UNKNOWN, and instructions.unresolved counts it.
  -- Another transaction that has locked the instruction may be waiting for these pending rows.
  -- Waiting for its lock would deadlock, so the item is skipped. The next claim or repair closes it.
  SELECT array_agg(d.outbox_id) INTO p_outbox_ids
  FROM (
    SELECT p.outbox_id, p.instruction_id, p.attempt_count >= i.max_attempts AS ends
    FROM orchestration.payment_outbox_pending p
    CROSS JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = p.outbox_id
      OFFSET 0
    ) i
    WHERE p.outbox_id = ANY (p_outbox_ids)
    OFFSET 0
  ) d
  LEFT JOIN LATERAL (
    SELECT true AS locked
    FROM orchestration.instructions n
    WHERE d.ends AND n.id = d.instruction_id
    FOR NO KEY UPDATE SKIP LOCKED
  ) n ON true
  WHERE n.locked OR NOT d.ends;
  RETURN QUERY
  INSERT INTO orchestration.payment_outbox_attempts (
    outbox_id, attempt_no, phase, state, outcome, lease_token, worker_id, claimed_at,
    completed_at, error_code
  )
  SELECT p.outbox_id, p.attempt_count, 'CLOSE',
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'FAILED' ELSE 'ZOMBIE_REQUEUE' END,
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'UNKNOWN' END,
         o.lease_token, o.worker_id, o.claimed_at, v_now,
         CASE WHEN i.max_attempts <= p.attempt_count THEN 'RETRY_CEILING_EXCEEDED' END
  FROM orchestration.payment_outbox_pending p
  CROSS JOIN LATERAL (
    SELECT i.max_attempts
    FROM orchestration.payment_outbox_items i
    WHERE i.outbox_id = p.outbox_id
    OFFSET 0
  ) i
  CROSS JOIN LATERAL (
    SELECT o.lease_token, o.worker_id, o.claimed_at
    FROM orchestration.payment_outbox_attempts o
    WHERE o.outbox_id = p.outbox_id
      AND o.attempt_no = p.attempt_count
      AND o.phase = 'OPEN'
      AND o.lease_token = p.lease_token
      AND o.worker_id = p.claimed_by
    OFFSET 0
  ) o
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND p.lease_expires_at <= v_now
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts c
      WHERE c.outbox_id = p.outbox_id
        AND (c.attempt_no = p.attempt_count AND c.phase = 'CLOSE'
          OR c.state IN ('DISPATCHED', 'FAILED'))
      OFFSET 0
    )
  RETURNING *;
  DELETE FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
      OFFSET 0
    );
  UPDATE orchestration.payment_outbox_pending p
  SET claimed_by = NULL,
      lease_token = NULL,
      lease_expires_at = NULL,
      -- A lease without an opened attempt is not counted.
      attempt_count = coalesce(
        (SELECT max(a.attempt_no)
         FROM orchestration.payment_outbox_attempts a
         WHERE a.outbox_id = p.outbox_id),
        0
      )
  WHERE p.outbox_id = ANY (p_outbox_ids)
    AND p.lease_expires_at <= v_now
    -- An attempt that was opened under another lease cannot be closed here. Its row keeps the
    -- expired lease, and verify_outbox reports it.
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts o
      WHERE o.outbox_id = p.outbox_id
        AND o.phase = 'OPEN'
        AND NOT EXISTS (
          SELECT FROM orchestration.payment_outbox_attempts c
          WHERE c.outbox_id = o.outbox_id AND c.attempt_no = o.attempt_no AND c.phase = 'CLOSE'
        )
      OFFSET 0
    );
END
$$;

ALTER FUNCTION orchestration.close_dead_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_dead_attempts FROM PUBLIC;
