CREATE FUNCTION orchestration.close_contradiction(
  p_outbox_id uuid,
  p_result_no integer,
  p_reason text,
  p_closed_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_intervention_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_by text := coalesce(p_closed_by, SESSION_USER::text);
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
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'State what was found and done.', 'reason'
    );
  END IF;
  PERFORM orchestration.lock_outbox_item(p_outbox_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_late_results l
    WHERE l.outbox_id = p_outbox_id AND l.result_no = p_result_no
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the late result does not exist', 'payment_outbox_late_results',
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'Check outbox_id and result_no: payment_outbox_contradictions shows them.', 'result_no'
    );
  END IF;
  SELECT v.* INTO v_intervention
  FROM orchestration.payment_outbox_interventions v
  WHERE v.outbox_id = p_outbox_id
    AND v.action = 'CLOSE_CONTRADICTION'
    AND v.result_no = p_result_no;
  IF NOT FOUND AND EXISTS (
    SELECT FROM orchestration.payment_outbox_contradictions c
    WHERE c.outbox_id = p_outbox_id AND c.result_no = p_result_no
  ) THEN
    v_replayed := false;
    INSERT INTO orchestration.payment_outbox_interventions AS v (
      outbox_id, action, result_no, reason, acted_by
    )
    VALUES (p_outbox_id, 'CLOSE_CONTRADICTION', p_result_no, p_reason, v_by)
    RETURNING v.* INTO v_intervention;
  ELSIF (v_intervention.reason, v_intervention.acted_by, v_intervention.db_user)
    IS DISTINCT FROM (p_reason, v_by, SESSION_USER::text) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7005',
      CASE WHEN v_intervention.outbox_id IS NULL
        THEN 'the late result contradicts nothing' ELSE 'the contradiction was already closed' END,
      'payment_outbox_interventions',
      jsonb_build_object('outbox_id', p_outbox_id, 'result_no', p_result_no),
      'payment_outbox_contradictions shows what can be closed.', 'result_no'
    );
  END IF;
  RETURN QUERY
  SELECT v_intervention.*, v_replayed;
END
$$;

ALTER FUNCTION orchestration.close_contradiction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_contradiction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.close_contradiction TO symphony_control;
