CREATE FUNCTION orchestration.claim_outbox_batch(
  p_worker_id text,
  p_batch_size bigint,
  p_lease interval,
  p_max_bytes bigint DEFAULT 16777216
) RETURNS SETOF orchestration.payment_outbox_claimed
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- plan_cache_mode is force_generic_plan because planning each call again costs more than a small
-- claim.
-- The function is long because the pick, the budget and the lease must share one transaction and
-- one order.
DECLARE
  v_now timestamptz := clock_timestamp();
  v_lease interval;
  v_stopped_participants text[];
  v_stopped_rails text[];
  v_found record;
  v_after_due timestamptz := '-infinity';
  v_after_id uuid := '00000000-0000-0000-0000-000000000000';
  v_free uuid[];
  v_claimed uuid[] := '{}';
  v_full boolean := false;
  v_passed_over bigint := 0;
BEGIN
  IF octet_length(p_worker_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'payment_outbox_pending', ARRAY['claimed_by'], ARRAY[p_worker_id]
    );
  END IF;
  -- Compare and add the lease in seconds. PostgreSQL takes a month as 30 days when it compares
  -- intervals, but follows the calendar when it adds them, and a day can have 23 hours.
  IF coalesce(p_worker_id, '') = ''
    OR (p_batch_size BETWEEN 1 AND 10000) IS NOT TRUE
    OR (extract(epoch FROM p_lease) BETWEEN 1 AND 86400) IS NOT TRUE
    OR (p_max_bytes BETWEEN 1 AND 1073741824) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023',
      'p_worker_id must not be empty, and p_batch_size must be 1 to 10,000, p_lease 1 second to 1 day,'
        ' p_max_bytes 1 byte to 1 GiB',
      'payment_outbox_pending',
      jsonb_build_object('worker_id', p_worker_id, 'batch_size', p_batch_size,
        'lease', p_lease::text, 'max_bytes', p_max_bytes),
      'Pass values within these bounds.'
    );
  END IF;
  v_lease := make_interval(secs => extract(epoch FROM p_lease)::float8);
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.refuse_if_killed('DISPATCH');
  -- Leave out the items of stopped participants and rails. stopped_targets is planned at every
  -- call, which costs as much as a small claim, so it is called only if such a switch was ever
  -- used.
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.scope = 'PARTICIPANT') THEN
    v_stopped_participants := orchestration.stopped_targets('PARTICIPANT');
  END IF;
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.scope = 'RAIL') THEN
    v_stopped_rails := orchestration.stopped_targets('RAIL');
  END IF;
  -- An item that this claim ends is not part of the batch. The loop picks again until the batch is
  -- full or no other item is due and free.
  LOOP
    SELECT f.* INTO v_found
    FROM orchestration.pick_due_items(
      v_now, p_batch_size - cardinality(v_claimed), v_after_due, v_after_id,
      v_stopped_participants, v_stopped_rails
    ) f;
    v_passed_over := v_passed_over + v_found.passed_over;
    v_full := coalesce(cardinality(v_found.picked), 0) = p_batch_size - cardinality(v_claimed);
    EXIT WHEN v_found.picked IS NULL;
    v_free := v_found.picked;
    IF v_found.dead IS NOT NULL THEN
      PERFORM orchestration.close_dead_attempts(v_found.dead);
      SELECT array_agg(f.outbox_id ORDER BY f.ord)
      INTO v_free
      FROM unnest(v_found.picked) WITH ORDINALITY AS f (outbox_id, ord)
      CROSS JOIN LATERAL (
        SELECT p.attempt_count
        FROM orchestration.payment_outbox_pending p
        WHERE p.outbox_id = f.outbox_id AND p.lease_token IS NULL
        OFFSET 0
      ) p
      CROSS JOIN LATERAL (
        SELECT
        FROM orchestration.payment_outbox_items i
        WHERE i.outbox_id = f.outbox_id AND i.max_attempts > p.attempt_count
        OFFSET 0
      ) i;
    END IF;
    v_claimed := v_claimed || v_free;
    EXIT WHEN NOT v_full OR cardinality(v_claimed) = p_batch_size;
    v_after_due := v_found.last_due;
    v_after_id := v_found.last_id;
  END LOOP;
  -- Passing over a few leased rows costs less than moving them.
  IF v_passed_over > 1000 THEN
    PERFORM orchestration.set_leases_apart(
      v_now, CASE WHEN v_full THEN v_found.last_due ELSE v_now END, 1000);
  END IF;
  IF v_claimed = '{}' THEN
    RETURN;
  END IF;
  -- Items beyond the budget stay due. The first item is returned even if it exceeds the budget.
  IF cardinality(v_claimed) > 1 THEN
    SELECT array_agg(s.outbox_id)
    INTO v_claimed
    FROM (
      SELECT c.outbox_id,
             row_number() OVER (ORDER BY c.ord) AS number,
             sum(i.octets) OVER (ORDER BY c.ord) AS octets
      FROM unnest(v_claimed) WITH ORDINALITY AS c (outbox_id, ord)
      CROSS JOIN LATERAL (
        SELECT octet_length(i.payload::text)
                 + coalesce(octet_length(i.context::text), 0) AS octets
        FROM orchestration.payment_outbox_items i
        WHERE i.outbox_id = c.outbox_id
        OFFSET 0
      ) i
    ) s
    WHERE s.number = 1 OR s.octets <= p_max_bytes;
  END IF;
  v_now := clock_timestamp();
  -- No index covers the columns that this update changes, so the new row version stays on its page.
  WITH taken AS MATERIALIZED (
    UPDATE orchestration.payment_outbox_pending p
    SET attempt_count = p.attempt_count + 1,
        claimed_by = p_worker_id,
        lease_token = gen_random_uuid(),
        lease_expires_at = v_now + v_lease
    WHERE p.outbox_id = ANY (v_claimed) AND p.lease_token IS NULL
    RETURNING p.outbox_id, p.next_attempt_at, p.attempt_count, p.lease_token
  ), opened AS (
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, lease_token, worker_id, claimed_at
    )
    SELECT t.outbox_id, t.attempt_count, 'OPEN', 'DISPATCHING', t.lease_token, p_worker_id, v_now
    FROM taken t
  )
  SELECT array_agg(t.outbox_id ORDER BY t.next_attempt_at, t.outbox_id)
  INTO v_claimed
  FROM taken t;
  RETURN QUERY
  SELECT c.*
  FROM unnest(v_claimed) WITH ORDINALITY AS t (outbox_id, ordinality)
  CROSS JOIN LATERAL (
    SELECT c.*
    FROM orchestration.payment_outbox_claimed c
    WHERE c.outbox_id = t.outbox_id
    OFFSET 0
  ) c
  ORDER BY t.ordinality;
END
$$;

ALTER FUNCTION orchestration.claim_outbox_batch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.claim_outbox_batch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.claim_outbox_batch TO symphony_executor;
