CREATE OR REPLACE FUNCTION orchestration.complete_instruction(p_id uuid, p_version integer)
 RETURNS SETOF orchestration.instruction_result
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'COMPLETED', NULL) e;
END
$function$;
-- owner: symphony_owner
