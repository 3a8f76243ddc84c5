CREATE OR REPLACE FUNCTION orchestration.fail_instruction(p_id uuid, p_version integer, p_reason text)
 RETURNS SETOF orchestration.instruction_result
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'FAILED', p_reason) e;
END
$function$;
-- owner: symphony_owner
