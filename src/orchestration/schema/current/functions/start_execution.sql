CREATE OR REPLACE FUNCTION orchestration.start_execution(p_id uuid, p_version integer)
 RETURNS SETOF orchestration.instructions
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  PERFORM orchestration.share_kill_switch_gate();
  PERFORM orchestration.lock_instruction(p_id, p_version, 'EXECUTING');
  RETURN QUERY
  UPDATE orchestration.instructions i SET state = 'EXECUTING' WHERE i.id = p_id RETURNING i.*;
END
$function$;
-- owner: symphony_owner
