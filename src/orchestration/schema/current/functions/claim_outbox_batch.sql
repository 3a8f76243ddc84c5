CREATE OR REPLACE FUNCTION orchestration.claim_outbox_batch(p_worker_id text, p_batch_size bigint, p_lease interval)
 RETURNS TABLE(outbox_id uuid, instruction_id uuid, participant_id text, sequence_id bigint, idempotency_key text, redrive_no integer, rail_type text, payload jsonb, payload_hash text, attempt_no integer, max_attempts integer, context jsonb, worker_id text, lease_token uuid, lease_expires_at timestamp with time zone, claimed_at timestamp with time zone)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_lease interval;
  v_stopped_participants text[];
  v_stopped_rails text[];
  v_picked uuid[];
  v_stale uuid[];
BEGIN
  IF octet_length(p_worker_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'payment_outbox_pending', ARRAY['claimed_by'], ARRAY[p_worker_id]
    );
  END IF;
  -- Judged and added in seconds: a month is 30 days where intervals are compared, and what the
  -- calendar says where they are added; a day may have 23 hours.
  IF coalesce(p_worker_id, '') = ''
    OR (p_batch_size BETWEEN 1 AND 10000) IS NOT TRUE
    OR (extract(epoch FROM p_lease) BETWEEN 1 AND 86400) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023',
      'a named worker claims 1 to 10,000 items for 1 second to 1 day',
      'payment_outbox_pending',
      jsonb_build_object('worker_id', p_worker_id, 'batch_size', p_batch_size,
        'lease', p_lease::text),
      'Claim within these bounds.'
    );
  END IF;
  v_lease := make_interval(secs => extract(epoch FROM p_lease)::float8);
  PERFORM orchestration.share_kill_switch_gate();
  PERFORM orchestration.refuse_if_killed('DISPATCH');
  -- A stopped participant or rail is left out, so that the others go on.
  v_stopped_participants := orchestration.stopped_targets('PARTICIPANT');
  v_stopped_rails := orchestration.stopped_targets('RAIL');
  -- In key order and with no index on the lease: the update below stays on its page.
  WITH picked AS MATERIALIZED (
    SELECT p.outbox_id,
           p.lease_token IS NOT NULL OR EXISTS (
             SELECT FROM orchestration.payment_outbox_attempts t
             WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
             OFFSET 0
           ) AS stale
    FROM orchestration.payment_outbox_pending p
    WHERE p.next_attempt_at <= v_now
      AND (p.lease_expires_at IS NULL OR p.lease_expires_at <= v_now)
      AND (v_stopped_participants IS NULL OR p.participant_id <> ALL (v_stopped_participants))
      AND (v_stopped_rails IS NULL OR p.rail_type <> ALL (v_stopped_rails))
    ORDER BY p.outbox_id
    LIMIT p_batch_size
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(k.outbox_id), array_agg(k.outbox_id) FILTER (WHERE k.stale)
  INTO v_picked, v_stale
  FROM picked k;
  IF v_stale IS NOT NULL THEN
    PERFORM orchestration.close_dead_attempts(v_stale);
  END IF;
  v_now := clock_timestamp();
  RETURN QUERY
  WITH taken AS MATERIALIZED (
    UPDATE orchestration.payment_outbox_pending p
    SET attempt_count = p.attempt_count + 1,
        claimed_by = p_worker_id,
        lease_token = gen_random_uuid(),
        lease_expires_at = v_now + v_lease
    WHERE p.outbox_id = ANY (v_picked)
      AND p.lease_token IS NULL
    RETURNING p.outbox_id, p.attempt_count, p.lease_token, p.lease_expires_at
  ), opened AS (
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, lease_token, worker_id, claimed_at
    )
    SELECT t.outbox_id, t.attempt_count, 'OPEN', 'DISPATCHING', t.lease_token, p_worker_id, v_now
    FROM taken t
  )
  SELECT t.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
         i.redrive_no, i.rail_type, i.payload, i.payload_hash, t.attempt_count, i.max_attempts,
         i.context, p_worker_id, t.lease_token, t.lease_expires_at, v_now
  FROM taken t
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.payment_outbox_items i
    WHERE i.outbox_id = t.outbox_id
    OFFSET 0
  ) i
  ORDER BY t.outbox_id;
END
$function$;
-- owner: symphony_owner
