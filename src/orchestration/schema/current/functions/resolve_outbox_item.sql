CREATE FUNCTION orchestration.resolve_outbox_item(
  p_outbox_id uuid,
  p_outcome text,
  p_reason text,
  p_resolved_by text DEFAULT NULL,
  p_rail_reference text DEFAULT NULL,
  p_attempt_no integer DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- p_attempt_no: the attempt that the result is about. By default it is the attempt that ended the
-- item.
DECLARE
  v_result orchestration.payment_outbox_late_results;
  v_attempt_no integer := p_attempt_no;
  v_replayed boolean := true;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['recorded_by', 'outcome', 'rail_reference'],
    ARRAY[p_resolved_by, p_outcome, p_rail_reference]
  );
  PERFORM orchestration.refuse_long_texts(
    'payment_outbox_late_results', ARRAY['reason'], ARRAY[p_reason], 4000
  );
  IF coalesce(p_reason, '') = '' THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_reason must not be empty', 'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id),
      'State how the outcome was found.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF v_attempt_no IS NULL THEN
    SELECT t.attempt_no INTO v_attempt_no
    FROM orchestration.payment_outbox_attempts t
    WHERE t.outbox_id = p_outbox_id AND t.state IN ('DISPATCHED', 'FAILED');
    IF v_attempt_no IS NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-011', 'P7005', 'the item has not ended', 'payment_outbox_attempts',
        jsonb_build_object('outbox_id', p_outbox_id),
        'Wait until it ends, cancel it, or pass the attempt that the result is about.', 'attempt_no'
      );
    END IF;
  END IF;
  -- Only the newest result counts, so only a repetition of the newest result is a replay.
  SELECT l.* INTO v_result
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = p_outbox_id
  ORDER BY l.result_no DESC
  LIMIT 1;
  IF (v_result.source, v_result.attempt_no, v_result.outcome, v_result.reason,
      v_result.rail_reference, v_result.recorded_by, v_result.db_user)
    IS DISTINCT FROM ('RECONCILIATION', v_attempt_no, p_outcome, p_reason,
      p_rail_reference, coalesce(p_resolved_by, SESSION_USER::text), SESSION_USER::text) THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_late_results AS l (
      outbox_id, attempt_no, source, outcome, rail_reference, reason, recorded_by
    )
    VALUES (
      p_outbox_id, v_attempt_no, 'RECONCILIATION', p_outcome, p_rail_reference, p_reason,
      coalesce(p_resolved_by, SESSION_USER::text)
    )
    RETURNING l.* INTO v_result;
  END IF;
  RETURN QUERY
  SELECT v_result.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.resolve_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.resolve_outbox_item FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.resolve_outbox_item TO symphony_control;
