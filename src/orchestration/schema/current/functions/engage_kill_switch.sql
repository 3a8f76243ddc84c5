CREATE OR REPLACE FUNCTION orchestration.engage_kill_switch(p_scope text, p_reason text, p_target text DEFAULT NULL::text, p_engaged_by text DEFAULT SESSION_USER, p_key text DEFAULT NULL::text)
 RETURNS SETOF orchestration.kill_switch_result
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  LOCK TABLE orchestration.kill_switch_gate IN EXCLUSIVE MODE;
  -- A snapshot older than the last event could miss the key: the gate's row answers with 40001.
  PERFORM 1 FROM orchestration.kill_switch_gate WHERE singleton FOR UPDATE;
  RETURN QUERY
  SELECT k.*, true
  FROM orchestration.kill_switches k
  WHERE k.key = p_key
    AND k.db_user = SESSION_USER
    AND (k.scope, k.target, k.action, k.reason, k.actor)
      IS NOT DISTINCT FROM (p_scope, p_target, 'ENGAGE', p_reason, p_engaged_by);
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor, key)
  VALUES (p_scope, p_target, 'ENGAGE', p_reason, p_engaged_by, p_key)
  RETURNING *, false;
END
$function$;
-- owner: symphony_owner
