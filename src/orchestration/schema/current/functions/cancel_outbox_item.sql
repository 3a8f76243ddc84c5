CREATE FUNCTION orchestration.cancel_outbox_item(
  p_outbox_id uuid,
  p_reason text,
  p_cancelled_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The function is long because a cancellation opens and closes an attempt, so that the item ends
-- like any other.
DECLARE
  v_by text := coalesce(p_cancelled_by, SESSION_USER::text);
  v_token uuid := gen_random_uuid();
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
      jsonb_build_object('outbox_id', p_outbox_id), 'State why the item is cancelled.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  IF v_pending.lease_token IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005', 'the item is claimed: its worker may be sending it',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', v_pending.claimed_by),
      'Wait for the worker. If it has stopped, end its lease; repair_expired_leases then closes the'
      ' attempt, and an item that has attempts left can be cancelled.',
      'lease_token'
    );
  ELSIF v_pending.outbox_id IS NULL THEN
    SELECT v.* INTO v_intervention
    FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = p_outbox_id
      AND v.action = 'CANCEL'
      AND v.reason = p_reason
      AND v.acted_by = v_by
      AND v.db_user = SESSION_USER;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-005', 'P7005', 'the item has ended', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', p_outbox_id),
        'Do not cancel it: payment_outbox_status shows how it ended.', 'outbox_id'
      );
    END IF;
  ELSE
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, attempt_no, reason, acted_by
    )
    VALUES (p_outbox_id, 'CANCEL', v_pending.attempt_count + 1, p_reason, v_by)
    RETURNING v.* INTO v_intervention;
    v_now := clock_timestamp();
    UPDATE orchestration.payment_outbox_pending p
    SET attempt_count = p.attempt_count + 1,
        claimed_by = v_by,
        lease_token = v_token,
        lease_expires_at = v_now + interval '1 minute'
    WHERE p.outbox_id = p_outbox_id;
    -- One statement opens and closes the attempt, so that the kill switch sees that nothing is
    -- dispatched.
    INSERT INTO orchestration.payment_outbox_attempts (
      outbox_id, attempt_no, phase, state, outcome, lease_token, worker_id, claimed_at,
      completed_at, error_code, error_message
    )
    VALUES
      (p_outbox_id, v_pending.attempt_count + 1, 'OPEN', 'DISPATCHING', NULL, v_token, v_by, v_now,
       NULL, NULL, NULL),
      (p_outbox_id, v_pending.attempt_count + 1, 'CLOSE', 'FAILED',
       -- If an earlier attempt has no reported outcome, it may have sent the payment.
       CASE WHEN EXISTS (
         SELECT FROM orchestration.payment_outbox_attempts a
         WHERE a.outbox_id = p_outbox_id
           AND a.phase = 'CLOSE'
           AND coalesce(a.outcome, 'UNKNOWN') = 'UNKNOWN'
       ) THEN 'UNKNOWN' ELSE 'NOT_SENT' END,
       v_token, v_by, v_now, v_now, 'CANCELLED', p_reason);
    DELETE FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = p_outbox_id;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.cancel_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.cancel_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.cancel_outbox_item TO symphony_control;
