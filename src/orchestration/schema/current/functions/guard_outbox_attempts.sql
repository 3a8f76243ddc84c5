CREATE FUNCTION orchestration.guard_outbox_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_since timestamptz := statement_timestamp();
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- Leases of another time, in any order: verify_outbox tells whether the attempts fit.
    RETURN NULL;
  END IF;
  SELECT n.outbox_id, n.attempt_no, n.phase, n.state, n.worker_id, f.fault
  INTO v_bad
  FROM inserted n
  LEFT JOIN LATERAL (
    SELECT p.lease_token, p.claimed_by, p.lease_expires_at, p.attempt_count
    FROM orchestration.payment_outbox_pending p
    WHERE p.outbox_id = n.outbox_id
    OFFSET 0
  ) p ON true
  LEFT JOIN LATERAL (
    SELECT o.lease_token, o.worker_id, o.claimed_at
    FROM orchestration.payment_outbox_attempts o
    WHERE n.phase = 'CLOSE'
      AND o.outbox_id = n.outbox_id
      AND o.attempt_no = n.attempt_no
      AND o.phase = 'OPEN'
    OFFSET 0
  ) o ON true
  LEFT JOIN LATERAL (
    SELECT c.state
    FROM orchestration.payment_outbox_attempts c
    WHERE n.phase = 'OPEN'
      AND n.attempt_no > 1
      AND c.outbox_id = n.outbox_id
      AND c.attempt_no = n.attempt_no - 1
      AND c.phase = 'CLOSE'
    OFFSET 0
  ) c ON true
  LEFT JOIN LATERAL (
    SELECT i.max_attempts
    FROM orchestration.payment_outbox_items i
    WHERE n.state IN ('DISPATCHING', 'RETRYABLE', 'ZOMBIE_REQUEUE')
      AND i.outbox_id = n.outbox_id
    OFFSET 0
  ) i ON true
  CROSS JOIN LATERAL (
    SELECT CASE
      WHEN n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id THEN 'FORGED'
      WHEN n.phase = 'OPEN' THEN CASE
        WHEN i.max_attempts IS NULL THEN 'ORDER'
        WHEN n.attempt_no > 1 AND coalesce(c.state, 'DISPATCHED') IN ('DISPATCHED', 'FAILED')
          THEN 'ORDER'
        WHEN n.attempt_no > i.max_attempts THEN 'CEILING'
        WHEN (p.lease_token, p.claimed_by, p.attempt_count)
          IS DISTINCT FROM (n.lease_token, n.worker_id, n.attempt_no)
          OR p.lease_expires_at <= n.claimed_at
          OR n.claimed_at NOT BETWEEN v_since AND v_now
          THEN 'ORDER'
      END
      WHEN o.lease_token IS NULL THEN 'ORDER'
      WHEN n.attempt_no >= i.max_attempts THEN 'CEILING'
      WHEN (n.lease_token, n.worker_id, n.claimed_at)
        IS DISTINCT FROM (o.lease_token, o.worker_id, o.claimed_at)
        OR (n.lease_token, n.worker_id) IS DISTINCT FROM (p.lease_token, p.claimed_by)
        OR n.completed_at NOT BETWEEN v_since AND v_now
        -- A worker or a cancellation closes before the lease expires, claim and repair after it.
        OR (n.requested_state IS NOT NULL
            OR coalesce(n.outcome, 'UNKNOWN') <> 'UNKNOWN'
            OR coalesce(n.error_code, '') = 'CANCELLED')
          <> (p.lease_expires_at > n.completed_at)
        THEN 'LEASE'
    END AS fault
  ) f
  WHERE f.fault IS NOT NULL
  LIMIT 1;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  CASE v_bad.fault
    WHEN 'FORGED' THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-001', '22023', 'who wrote an attempt and when is the database''s to say',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'Leave db_user and xact_id out.', 'db_user'
      );
    WHEN 'CEILING' THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-003', 'P7003', 'the item has used all its attempts', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'The last attempt ends as DISPATCHED or FAILED; redrive the item if it may run again.',
        'attempt_no'
      );
    WHEN 'LEASE' THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'the lease does not allow this closing',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'worker_id', v_bad.worker_id, 'state', v_bad.state),
        'A worker closes under its current, unexpired lease; claim and repair after it.',
        'lease_token'
      );
    ELSE
      PERFORM orchestration.raise_invariant(
        'INV-OUT-005', 'P7005', 'the attempt does not follow the item''s attempts so far',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'phase', v_bad.phase, 'state', v_bad.state),
        'Attempts are opened by claim_outbox_batch and closed once, by complete_outbox_attempt.',
        'attempt_no'
      );
  END CASE;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_attempts FROM PUBLIC;
