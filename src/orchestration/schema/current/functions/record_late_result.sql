CREATE FUNCTION orchestration.record_late_result(
  p_outbox_id uuid,
  p_attempt_no integer,
  p_outcome text,
  p_lease_token uuid DEFAULT NULL,
  p_rail_reference text DEFAULT NULL,
  p_reason text DEFAULT NULL,
  p_recorded_by text DEFAULT NULL
) RETURNS SETOF orchestration.payment_outbox_late_result_result
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- With a token, the worker records the result of its own attempt. Without a token, a caller who can
-- execute resolve_outbox_item records a reconciliation. The function runs with the rights of its
-- caller, so control gets 42501 if it passes the token of a worker.
BEGIN
  IF p_lease_token IS NOT NULL OR NOT has_function_privilege(
    'orchestration.resolve_outbox_item(uuid, text, text, text, text, integer)', 'EXECUTE'
  ) THEN
    RETURN QUERY
    SELECT w.*
    FROM orchestration.record_worker_result(
      p_outbox_id, p_attempt_no, p_lease_token, p_recorded_by, p_outcome, p_rail_reference
    ) w;
  ELSE
    RETURN QUERY
    SELECT r.*
    FROM orchestration.resolve_outbox_item(
      p_outbox_id, p_outcome, p_reason, p_recorded_by, p_rail_reference, p_attempt_no
    ) r;
  END IF;
END
$$;

ALTER FUNCTION orchestration.record_late_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_late_result FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.record_late_result TO symphony_executor, symphony_control;
