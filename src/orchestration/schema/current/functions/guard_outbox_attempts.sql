CREATE FUNCTION orchestration.guard_outbox_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The function is long because one pass over the rows looks up all that the four refusals need. It
-- runs in every claim and completion.
-- OFFSET 0 stops the planner from flattening the look-ups into joins. The plan of such a join, made
-- while the tables were empty, would stay slow for the session.
DECLARE
  v_xact_id bigint := pg_current_xact_id()::text::bigint;
  v_since timestamptz := statement_timestamp();
  v_now timestamptz := clock_timestamp();
  v_bad record;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- Copied attempts arrive in any order, and their leases have ended. verify_outbox reports
    -- attempts that do not belong together.
    RETURN NULL;
  END IF;
  SELECT n.outbox_id, n.attempt_no, n.phase, n.state, n.worker_id,
         f.forged, f.out_of_order, f.past_ceiling, f.lease_lost
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
    SELECT n.db_user <> SESSION_USER OR n.xact_id <> v_xact_id AS forged,
           CASE n.phase
             WHEN 'OPEN' THEN i.max_attempts IS NULL
               OR n.attempt_no > 1 AND coalesce(c.state, 'DISPATCHED') IN ('DISPATCHED', 'FAILED')
             ELSE o.lease_token IS NULL
           END AS out_of_order,
           CASE n.phase
             WHEN 'OPEN' THEN n.attempt_no > i.max_attempts
             ELSE n.attempt_no >= i.max_attempts
           END AS past_ceiling,
           n.phase = 'OPEN'
             AND ((p.lease_token, p.claimed_by, p.attempt_count)
                 IS DISTINCT FROM (n.lease_token, n.worker_id, n.attempt_no)
               OR p.lease_expires_at <= n.claimed_at
               OR n.claimed_at NOT BETWEEN v_since AND v_now) AS unclaimed,
           n.phase <> 'OPEN'
             AND ((n.lease_token, n.worker_id, n.claimed_at)
                 IS DISTINCT FROM (o.lease_token, o.worker_id, o.claimed_at)
               OR (n.lease_token, n.worker_id) IS DISTINCT FROM (p.lease_token, p.claimed_by)
               OR n.completed_at NOT BETWEEN v_since AND v_now
               -- A worker or a cancellation closes before the lease expires, a claim or a repair
               -- after it.
               OR (n.requested_state IS NOT NULL
                   OR coalesce(n.outcome, 'UNKNOWN') <> 'UNKNOWN'
                   OR coalesce(n.error_code, '') = 'CANCELLED')
                 <> (p.lease_expires_at > n.completed_at)) AS lease_lost
  ) f
  WHERE f.forged OR f.out_of_order OR f.past_ceiling OR f.unclaimed OR f.lease_lost
  LIMIT 1;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  CASE
    WHEN v_bad.forged THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-001', '22023', 'db_user and xact_id are set by the database',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'Leave db_user and xact_id out.', 'db_user'
      );
    WHEN v_bad.past_ceiling AND NOT v_bad.out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-003', 'P7003', 'the item has used all its attempts', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no),
        'Close the last attempt as DISPATCHED or FAILED. Redrive the item to try again.',
        'attempt_no'
      );
    WHEN v_bad.lease_lost AND NOT v_bad.out_of_order THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'the attempt cannot be closed under this lease at this time',
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'worker_id', v_bad.worker_id, 'state', v_bad.state),
        'A worker must close it before its lease expires; a claim or a repair must do so later.',
        'lease_token'
      );
    ELSE
      PERFORM orchestration.raise_invariant(
        'INV-OUT-005', 'P7005',
        CASE
          WHEN v_bad.out_of_order
            THEN 'the attempt does not follow the earlier attempts of the item'
          ELSE 'the pending row has no lease for this attempt'
        END,
        'payment_outbox_attempts',
        jsonb_build_object('outbox_id', v_bad.outbox_id, 'attempt_no', v_bad.attempt_no,
          'phase', v_bad.phase, 'state', v_bad.state),
        'Use claim_outbox_batch to open an attempt, and complete_outbox_attempt to close it once.',
        'attempt_no'
      );
  END CASE;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_attempts FROM PUBLIC;
