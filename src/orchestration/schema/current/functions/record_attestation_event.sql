CREATE FUNCTION orchestration.record_attestation_event(
  p_attestation_id uuid,
  p_event text,
  p_terminal_status text DEFAULT NULL,
  p_recorded_by text DEFAULT SESSION_USER
) RETURNS SETOF orchestration.ingress_attestation_event_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_attestation orchestration.ingress_attestations;
  v_recorded orchestration.ingress_attestation_event_result;
  v_replayed boolean;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'ingress_attestation_events', ARRAY['event', 'terminal_status', 'recorded_by'],
    ARRAY[p_event, p_terminal_status, p_recorded_by]
  );
  SELECT a.* INTO v_attestation
  FROM orchestration.ingress_attestations a
  WHERE a.id = p_attestation_id;
  IF v_attestation.id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the attestation does not exist', 'ingress_attestations',
      jsonb_build_object('id', p_attestation_id), 'Check the id.', 'id'
    );
  END IF;
  IF p_event = 'EXECUTION_STARTED' AND v_attestation.execution_started
    OR p_event = 'EXECUTION_COMPLETED' AND v_attestation.execution_completed THEN
    -- The attestation was stored with this event. Return it as a recorded event.
    v_recorded := ROW(
      v_attestation.id, p_event, v_attestation.caller_identity,
      CASE WHEN p_event = 'EXECUTION_COMPLETED' THEN v_attestation.terminal_status END,
      v_attestation.attested_at, v_attestation.db_user, v_attestation.db_user,
      v_attestation.xact_id, true
    );
  ELSE
    INSERT INTO orchestration.ingress_attestation_events
      (attestation_id, event, terminal_status, recorded_by)
    VALUES (p_attestation_id, p_event, p_terminal_status, p_recorded_by)
    ON CONFLICT DO NOTHING;
    v_replayed := NOT FOUND;
    SELECT e.*, v_replayed INTO v_recorded
    FROM orchestration.ingress_attestation_events e
    WHERE e.attestation_id = p_attestation_id AND e.event = p_event;
  END IF;
  IF v_recorded.terminal_status IS DISTINCT FROM p_terminal_status THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'the event is already recorded with a different terminal_status',
      'ingress_attestation_events',
      jsonb_build_object('attestation_id', p_attestation_id, 'event', p_event,
        'terminal_status', v_recorded.terminal_status),
      'ingress_attestation_status shows the recorded terminal_status.', 'terminal_status'
    );
  END IF;
  RETURN NEXT v_recorded;
END
$$;

ALTER FUNCTION orchestration.record_attestation_event OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_attestation_event FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_attestation_event TO symphony_executor;
