CREATE OR REPLACE FUNCTION orchestration.engage_kill_switch(p_scope text, p_reason text, p_target text DEFAULT NULL::text, p_engaged_by text DEFAULT SESSION_USER)
 RETURNS SETOF orchestration.kill_switches
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET lock_timeout TO '0'
AS $function$
-- It waits as long as it takes: whoever holds the gate may be idle for 10 seconds at most.
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'kill_switches', ARRAY['scope', 'target', 'actor'], ARRAY[p_scope, p_target, p_engaged_by]
  );
  PERFORM orchestration.refuse_long_texts('kill_switches', ARRAY['reason'], ARRAY[p_reason], 4000);
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor)
  VALUES (p_scope, p_target, 'ENGAGE', p_reason, p_engaged_by)
  RETURNING *;
END
$function$;
-- owner: symphony_owner
