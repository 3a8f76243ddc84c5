CREATE OR REPLACE FUNCTION orchestration.release_kill_switch(p_scope text, p_reason text, p_target text DEFAULT NULL::text, p_released_by text DEFAULT SESSION_USER)
 RETURNS SETOF orchestration.kill_switches
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'kill_switches', ARRAY['scope', 'target', 'actor'], ARRAY[p_scope, p_target, p_released_by]
  );
  PERFORM orchestration.refuse_long_texts('kill_switches', ARRAY['reason'], ARRAY[p_reason], 4000);
  PERFORM orchestration.lock_gate('kill_switch_gate');
  IF NOT EXISTS (
    SELECT FROM orchestration.kill_switch_state s
    WHERE s.scope = p_scope AND s.target IS NOT DISTINCT FROM p_target AND s.engaged
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'no such kill switch is engaged', 'kill_switches',
      jsonb_build_object('scope', p_scope, 'target', p_target), 'Read kill_switch_state.', 'scope'
    );
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor)
  VALUES (p_scope, p_target, 'RELEASE', p_reason, p_released_by)
  RETURNING *;
END
$function$;
-- owner: symphony_owner
