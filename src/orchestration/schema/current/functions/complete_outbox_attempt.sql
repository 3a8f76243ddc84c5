CREATE FUNCTION orchestration.complete_outbox_attempt(
  p_completions jsonb,
  p_partial boolean DEFAULT false
) RETURNS TABLE (
  outbox_id uuid,
  state text,
  error_sqlstate text,
  error_message text,
  error_detail jsonb,
  error_hint text,
  replayed boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
#variable_conflict use_column
-- p_partial: if false, a lost lease rejects the whole call; if true, its row reports it.
-- The function is long because it closes the whole batch in one order of locks, and answers lost
-- leases and replays per element.
DECLARE
  v_completions orchestration.outbox_completion[];
  v_now timestamptz;
  v_ended uuid[];
  v_retried uuid[];
  v_delays jsonb;
  v_bad record;
BEGIN
  IF jsonb_typeof(p_completions) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_completions) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_completions must be an array of 0 to 10,000 objects',
      'payment_outbox_attempts', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_completions) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_completions must be at most 64 MiB',
      'payment_outbox_attempts', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_completions := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.outbox_completion, p_completions) AS r
    );
    SELECT t.ordinality, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN octet_length(r.worker_id) > 1000 THEN 'worker_id'
               WHEN octet_length(r.state) > 1000 THEN 'state'
               WHEN octet_length(r.outcome) > 1000 THEN 'outcome'
               WHEN octet_length(r.rail_reference) > 1000 THEN 'rail_reference'
               WHEN octet_length(r.rail_code) > 1000 THEN 'rail_code'
               WHEN octet_length(r.error_code) > 1000 THEN 'error_code'
               WHEN octet_length(r.error_message) > 4000 THEN 'error_message'
             END AS malformed
      FROM unnest(v_completions) WITH ORDINALITY AS r
    ) t
    WHERE t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('payment_outbox_attempts', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'payment_outbox_attempts', v_bad.ordinality, NULL, v_bad.malformed
    );
  END IF;
  IF p_partial IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_partial must not be null', 'payment_outbox_attempts', '{}',
      'Pass true or false.'
    );
  END IF;
  -- Compare seconds, as claim_outbox_batch does.
  SELECT r.outbox_id, r.retry_in INTO v_bad
  FROM unnest(v_completions) AS r
  WHERE extract(epoch FROM r.retry_in) NOT BETWEEN 0 AND 36525 * 86400.0
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'retry_in must be between 0 and 36,525 days',
      'payment_outbox_attempts',
      jsonb_build_object('outbox_id', v_bad.outbox_id, 'retry_in', v_bad.retry_in::text),
      'Pass a delay within these bounds.'
    );
  END IF;
  SELECT r.outbox_id INTO v_bad
  FROM unnest(v_completions) AS r
  WHERE r.state = 'FAILED' AND r.outcome IS NULL
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-003', '22023', 'a FAILED completion requires an outcome',
      'payment_outbox_attempts', jsonb_build_object('outbox_id', v_bad.outbox_id),
      'Pass REJECTED, NOT_SENT, or UNKNOWN if nobody knows what the rail did.', 'outcome'
    );
  END IF;
  -- A transaction that waits for the locks below may hold a gate.
  PERFORM orchestration.bound_idle_time();
  -- The trigger `unresolved` locks the instruction of an item that ends as FAILED, and instructions
  -- must be locked before pending rows. Nobody without the lease token can move the item meanwhile,
  -- so attempt_count is current.
  PERFORM 1
  FROM (
    SELECT DISTINCT p.instruction_id
    FROM unnest(v_completions) AS r
    CROSS JOIN LATERAL (
      SELECT p.instruction_id, p.attempt_count
      FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = r.outbox_id AND p.lease_token = r.lease_token
      OFFSET 0
    ) p
    CROSS JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE i.outbox_id = r.outbox_id
      OFFSET 0
    ) i
    WHERE r.state = 'FAILED' OR r.state = 'RETRYABLE' AND p.attempt_count >= i.max_attempts
    ORDER BY p.instruction_id
    OFFSET 0
  ) r
  CROSS JOIN LATERAL (
    SELECT 1
    FROM orchestration.instructions n
    WHERE n.id = r.instruction_id
    FOR NO KEY UPDATE
  ) n;
  PERFORM 1
  FROM (
    SELECT DISTINCT r.outbox_id
    FROM unnest(v_completions) AS r
    ORDER BY r.outbox_id
    OFFSET 0
  ) r
  CROSS JOIN LATERAL (
    SELECT 1
    FROM orchestration.payment_outbox_pending p
    WHERE p.outbox_id = r.outbox_id
    FOR UPDATE
  ) p;
  v_now := clock_timestamp();
  -- Close the attempts before the pending rows change: the guard checks an attempt against its
  -- lease.
  WITH first AS MATERIALIZED (
    SELECT DISTINCT ON (r.outbox_id) r.*
    FROM unnest(v_completions) WITH ORDINALITY AS r
    ORDER BY r.outbox_id, r.ordinality
  ), accepted AS MATERIALIZED (
    SELECT f.*, p.attempt_count, o.claimed_at,
           f.state = 'RETRYABLE' AND p.attempt_count >= i.max_attempts AS at_ceiling,
           -- NOT_SENT is about this attempt only. If an earlier attempt has no reported outcome, it
           -- may have sent the payment.
           CASE
             WHEN f.outcome = 'NOT_SENT' AND p.attempt_count > 1 AND EXISTS (
               SELECT FROM orchestration.payment_outbox_attempts a
               WHERE a.outbox_id = f.outbox_id
                 AND a.phase = 'CLOSE'
                 AND coalesce(a.outcome, 'UNKNOWN') = 'UNKNOWN'
               OFFSET 0
             ) THEN 'UNKNOWN'
             ELSE coalesce(f.outcome, 'UNKNOWN')
           END AS final_outcome
    FROM first f
    CROSS JOIN LATERAL (
      SELECT p.attempt_count
      FROM orchestration.payment_outbox_pending p
      WHERE p.outbox_id = f.outbox_id
        AND p.lease_token = f.lease_token
        AND p.claimed_by = f.worker_id
        AND p.lease_expires_at > v_now
      OFFSET 0
    ) p
    CROSS JOIN LATERAL (
      SELECT o.claimed_at
      FROM orchestration.payment_outbox_attempts o
      WHERE o.outbox_id = f.outbox_id AND o.attempt_no = p.attempt_count AND o.phase = 'OPEN'
      OFFSET 0
    ) o
    LEFT JOIN LATERAL (
      SELECT i.max_attempts
      FROM orchestration.payment_outbox_items i
      WHERE f.state = 'RETRYABLE' AND i.outbox_id = f.outbox_id
      OFFSET 0
    ) i ON true
  ), closed AS (
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, outcome, requested_state, requested_error_code,
      lease_token, worker_id, claimed_at, completed_at,
      rail_reference, rail_code, error_code, error_message, latency_ms
    )
    SELECT a.outbox_id, a.attempt_count, 'CLOSE',
           CASE WHEN a.at_ceiling THEN 'FAILED' ELSE a.state END,
           CASE WHEN a.at_ceiling OR a.state = 'FAILED' THEN a.final_outcome ELSE a.outcome END,
           a.state, a.error_code,
           a.lease_token, a.worker_id, a.claimed_at, v_now,
           a.rail_reference, a.rail_code,
           CASE WHEN a.at_ceiling THEN 'RETRY_CEILING_EXCEEDED' ELSE a.error_code END,
           a.error_message, a.latency_ms
    FROM accepted a
    RETURNING outbox_id, state
  )
  SELECT array_agg(c.outbox_id) FILTER (WHERE c.state <> 'RETRYABLE'),
         array_agg(c.outbox_id) FILTER (WHERE c.state = 'RETRYABLE')
  INTO v_ended, v_retried
  FROM closed c;
  DELETE FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = ANY (v_ended);
  IF v_retried IS NOT NULL THEN
    SELECT jsonb_object_agg(f.outbox_id, coalesce(extract(epoch FROM f.retry_in), 0))
    INTO v_delays
    FROM (
      SELECT DISTINCT ON (r.outbox_id) r.outbox_id, r.retry_in
      FROM unnest(v_completions) WITH ORDINALITY AS r
      ORDER BY r.outbox_id, r.ordinality
    ) f;
    UPDATE orchestration.payment_outbox_pending p
    SET next_attempt_at = v_now
          + make_interval(secs => (v_delays ->> p.outbox_id::text)::float8),
        claimed_by = NULL,
        lease_token = NULL,
        lease_expires_at = NULL
    WHERE p.outbox_id = ANY (v_retried);
  END IF;

  -- A completion counts as recorded if an attempt was closed with its token and the same content,
  -- by this call or before. If this call has closed all of them, no look-up is needed.
  IF coalesce(cardinality(v_ended), 0) + coalesce(cardinality(v_retried), 0)
    < jsonb_array_length(p_completions) THEN
    FOR v_bad IN
      SELECT r.outbox_id, r.worker_id,
             EXISTS (
               SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = r.outbox_id
             ) AS known
      FROM unnest(v_completions) WITH ORDINALITY AS r
      WHERE NOT EXISTS (
        SELECT FROM orchestration.payment_outbox_attempts c
        WHERE c.outbox_id = r.outbox_id
          AND c.phase = 'CLOSE'
          AND c.lease_token = r.lease_token
          AND c.worker_id = r.worker_id
          AND (c.requested_state, c.requested_error_code, c.rail_reference)
            IS NOT DISTINCT FROM (r.state, r.error_code, r.rail_reference)
        OFFSET 0
      )
      ORDER BY r.ordinality
    LOOP
      IF NOT v_bad.known THEN
        PERFORM orchestration.raise_invariant(
          'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
          jsonb_build_object('outbox_id', v_bad.outbox_id), 'Check the id.', 'outbox_id'
        );
      END IF;
      IF NOT p_partial THEN
        PERFORM orchestration.raise_invariant(
          'INV-OUT-002', 'P7002', 'this worker no longer holds the lease',
          'payment_outbox_pending',
          jsonb_build_object('outbox_id', v_bad.outbox_id, 'worker_id', v_bad.worker_id),
          'Record the answer of the rail with record_late_result.', 'lease_token'
        );
      END IF;
    END LOOP;
  END IF;
  RETURN QUERY
  SELECT r.outbox_id, c.state,
         CASE WHEN c.state IS NULL THEN 'P7002' END,
         CASE WHEN c.state IS NULL
           THEN 'INV-OUT-002: this worker no longer holds the lease' END,
         CASE WHEN c.state IS NULL
           THEN jsonb_build_object('outbox_id', r.outbox_id, 'worker_id', r.worker_id) END,
         CASE WHEN c.state IS NULL
           THEN 'Record the answer of the rail with record_late_result.' END,
         -- This call closed its attempts at v_now, so any other time means a replay.
         coalesce(c.completed_at <> v_now, false)
  FROM unnest(v_completions) WITH ORDINALITY AS r
  LEFT JOIN LATERAL (
    SELECT c.state, c.completed_at
    FROM orchestration.payment_outbox_attempts c
    WHERE c.outbox_id = r.outbox_id
      AND c.phase = 'CLOSE'
      AND c.lease_token = r.lease_token
      AND c.worker_id = r.worker_id
      AND (c.requested_state, c.requested_error_code, c.rail_reference)
        IS NOT DISTINCT FROM (r.state, r.error_code, r.rail_reference)
    OFFSET 0
  ) c ON true
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.complete_outbox_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.complete_outbox_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.complete_outbox_attempt TO symphony_executor;
