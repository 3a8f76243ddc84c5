CREATE FUNCTION orchestration.record_worker_result(
  p_outbox_id uuid,
  p_attempt_no integer,
  p_lease_token uuid,
  p_worker_id text,
  p_outcome text,
  p_rail_reference text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_result orchestration.payment_outbox_late_results;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['recorded_by', 'outcome', 'rail_reference'],
    ARRAY[p_worker_id, p_outcome, p_rail_reference]
  );
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts o
    WHERE o.outbox_id = p_outbox_id
      AND o.attempt_no = p_attempt_no
      AND o.phase = 'OPEN'
      AND o.lease_token = p_lease_token
      AND o.worker_id = p_worker_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7002', 'the token is not the token of this worker''s attempt',
      'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id, 'attempt_no', p_attempt_no,
        'worker_id', p_worker_id),
      'Pass the attempt, the worker and the lease token that the claim returned.',
      'lease_token'
    );
  END IF;
  SELECT l.* INTO v_result
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = p_outbox_id
    AND l.attempt_no = p_attempt_no
    AND l.source = 'WORKER'
    AND l.outcome = p_outcome
    AND l.rail_reference IS NOT DISTINCT FROM p_rail_reference
    AND l.db_user = SESSION_USER
  ORDER BY l.result_no DESC
  LIMIT 1;
  IF v_result.outbox_id IS NULL THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_late_results AS l (
      outbox_id, attempt_no, source, outcome, rail_reference, lease_token, recorded_by
    )
    VALUES (
      p_outbox_id, p_attempt_no, 'WORKER', p_outcome, p_rail_reference, p_lease_token, p_worker_id
    )
    RETURNING l.* INTO v_result;
  END IF;
  RETURN QUERY
  SELECT v_result.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.record_worker_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_worker_result FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_worker_result TO symphony_executor;
