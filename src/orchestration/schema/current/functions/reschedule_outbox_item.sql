CREATE FUNCTION orchestration.reschedule_outbox_item(
  p_outbox_id uuid,
  p_due_at timestamptz
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_pending orchestration.payment_outbox_pending;
  v_intervention orchestration.payment_outbox_interventions;
  v_replayed boolean := true;
BEGIN
  IF (isfinite(p_due_at) AND p_due_at <= clock_timestamp() + interval '400 days') IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_due_at must be a time at most 400 days ahead',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'due_at', p_due_at),
      'Pass an earlier time.', 'next_attempt_at'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  SELECT p.* INTO v_pending
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id;
  IF v_pending.outbox_id IS NULL OR v_pending.lease_token IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005',
      CASE WHEN v_pending.outbox_id IS NULL THEN 'the item has ended' ELSE 'the item is claimed' END,
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', v_pending.claimed_by),
      'Only an item that waits for its next attempt can be rescheduled.', 'next_attempt_at'
    );
  END IF;
  SELECT v.* INTO v_intervention
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = p_outbox_id
    AND v.action = 'RESCHEDULE'
    AND v.time_after = p_due_at
    AND v.db_user = SESSION_USER
  ORDER BY v.intervention_no DESC
  LIMIT 1;
  IF v_intervention.outbox_id IS NULL OR v_pending.next_attempt_at <> p_due_at THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, time_before, time_after
    )
    VALUES (p_outbox_id, 'RESCHEDULE', v_pending.next_attempt_at, p_due_at)
    RETURNING v.* INTO v_intervention;
    UPDATE orchestration.payment_outbox_pending p
    SET next_attempt_at = p_due_at
    WHERE p.outbox_id = p_outbox_id;
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.reschedule_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.reschedule_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.reschedule_outbox_item TO symphony_control;
