CREATE FUNCTION orchestration.release_kill_switch(
  p_scope text,
  p_reason text,
  p_target text DEFAULT NULL,
  p_released_by text DEFAULT SESSION_USER,
  p_key text DEFAULT NULL
) RETURNS SETOF orchestration.kill_switch_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'kill_switches', ARRAY['scope', 'target', 'actor', 'key'],
    ARRAY[p_scope, p_target, p_released_by, p_key]
  );
  PERFORM orchestration.refuse_long_texts('kill_switches', ARRAY['reason'], ARRAY[p_reason], 4000);
  PERFORM orchestration.lock_gate('kill_switch_gate');
  RETURN QUERY
  SELECT k.*, true
  FROM orchestration.kill_switches k
  WHERE k.key = p_key
    AND k.db_user = SESSION_USER
    AND (k.scope, k.target, k.action, k.reason, k.actor)
      IS NOT DISTINCT FROM (p_scope, p_target, 'RELEASE', p_reason, p_released_by);
  IF FOUND THEN
    RETURN;
  END IF;
  -- The unique constraint would reject the key too, but its DETAIL would show the whole key.
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.key = p_key) THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-003', '23505', 'p_key belongs to a different event', 'kill_switches',
      jsonb_build_object('key', p_key), 'Use a new key for each event.', 'key'
    );
  END IF;
  IF NOT EXISTS (
    SELECT FROM orchestration.kill_switch_state s
    WHERE s.scope = p_scope AND s.target IS NOT DISTINCT FROM p_target AND s.engaged
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'no such kill switch is engaged', 'kill_switches',
      jsonb_build_object('scope', p_scope, 'target', p_target),
      'kill_switch_state shows the engaged switches.', 'scope'
    );
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor, key)
  VALUES (p_scope, p_target, 'RELEASE', p_reason, p_released_by, p_key)
  RETURNING *, false;
END
$$;

ALTER FUNCTION orchestration.release_kill_switch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.release_kill_switch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.release_kill_switch TO symphony_control;
