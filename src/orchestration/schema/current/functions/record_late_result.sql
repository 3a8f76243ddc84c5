CREATE OR REPLACE FUNCTION orchestration.record_late_result(p_outbox_id uuid, p_attempt_no integer, p_outcome text, p_lease_token uuid DEFAULT NULL::uuid, p_rail_reference text DEFAULT NULL::text, p_reason text DEFAULT NULL::text, p_recorded_by text DEFAULT NULL::text)
 RETURNS TABLE(outbox_id uuid, result_no integer, attempt_no integer, source text, outcome text, rail_reference text, reason text, recorded_by text, recorded_at timestamp with time zone, db_user text, replayed boolean)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- With a token it is the worker's own result, without one a reconciliation by a caller who may
-- reconcile. It runs with the rights of its caller: control that reports for a worker gets 42501.
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
$function$;
-- owner: symphony_owner
