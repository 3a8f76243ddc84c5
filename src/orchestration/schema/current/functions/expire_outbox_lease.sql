CREATE FUNCTION orchestration.expire_outbox_lease(
  p_outbox_id uuid,
  p_reason text,
  p_expired_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because it also finds the record of an earlier call, for a replay.
DECLARE
  v_by text := coalesce(p_expired_by, SESSION_USER::text);
  v_now timestamptz;
  v_pending orchestration.payment_outbox_pending;
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['acted_by'], ARRAY[v_by]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_interventions', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id), 'State why the lease is ended.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  v_now := clock_timestamp();
  IF v_pending.lease_expires_at > v_now THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, attempt_no, time_before, time_after, reason, acted_by
    )
    VALUES (
      p_outbox_id, 'EXPIRE_LEASE', v_pending.attempt_count, v_pending.lease_expires_at, v_now,
      p_reason, v_by
    )
    RETURNING v.* INTO v_intervention;
    UPDATE orchestration.payment_outbox_pending p
    SET lease_expires_at = v_now,
        -- A claim may have moved the row to the end of its lease, and claims and repairs look only
        -- at rows up to now.
        next_attempt_at = least(p.next_attempt_at, v_now)
    WHERE p.outbox_id = p_outbox_id;
  ELSE
    -- The first call ended the lease of the newest attempt, unless the item was claimed again.
    SELECT v.* INTO v_intervention
    FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = p_outbox_id
      AND v.action = 'EXPIRE_LEASE'
      AND v.attempt_no = (
        SELECT max(a.attempt_no)
        FROM orchestration.payment_outbox_attempts a
        WHERE a.outbox_id = p_outbox_id
      )
      AND v.reason = p_reason
      AND v.acted_by = v_by
      AND v.db_user = SESSION_USER;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'the item has no live lease',
        'payment_outbox_pending',
        jsonb_build_object('outbox_id', p_outbox_id),
        'payment_outbox_status shows whether the item waits, has ended or has an expired lease.',
        'lease_expires_at'
      );
    END IF;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.expire_outbox_lease OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.expire_outbox_lease FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.expire_outbox_lease TO symphony_control;
