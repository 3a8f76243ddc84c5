CREATE FUNCTION orchestration.lock_gate(p_gate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The side of the change: the lock waits for the writers that share the gate, and writers that come
-- later wait for the change.
DECLARE
  v_invariant text := CASE p_gate
    WHEN 'policy_gate' THEN 'INV-ATT-008'
    WHEN 'revocation_gate' THEN 'INV-ATT-009'
    ELSE 'INV-KIL-002'
  END;
  v_rows bigint;
BEGIN
  PERFORM orchestration.bound_idle_time();
  BEGIN
    EXECUTE format('LOCK TABLE orchestration.%I IN EXCLUSIVE MODE', p_gate);
  EXCEPTION
    WHEN lock_not_available THEN
      PERFORM orchestration.raise_invariant(
        v_invariant, '55P03', format('%s was not free within lock_timeout', p_gate), p_gate,
        jsonb_build_object('gate', p_gate, 'holders', coalesce((
          SELECT jsonb_agg(
            jsonb_strip_nulls(jsonb_build_object(
              'pid', h.pid, 'login', h.login, 'application_name', h.application_name,
              'mode', h.mode, 'transaction_started_at', h.transaction_started_at,
              'prepared_gid', h.prepared_gid
            ))
          )
          FROM (
            SELECT g.*
            FROM orchestration.gate_holders() g
            WHERE g.gate = p_gate AND g.granted
            LIMIT 20
          ) h
        ), '[]')),
        'Run it again. gate_holders() shows who holds the gate.'
      );
  END;
  -- A subscription brings the gate's row in no order with the rows of other tables.
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN;
  END IF;
  -- An older snapshot gets 40001 here, before it judges what it cannot see.
  EXECUTE format('SELECT FROM orchestration.%I WHERE singleton FOR UPDATE', p_gate);
  GET DIAGNOSTICS v_rows = ROW_COUNT;
  IF v_rows <> 1 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', format('%s has lost its row', p_gate), p_gate, '{}',
      format('Insert it again, as owner: INSERT INTO orchestration.%I DEFAULT VALUES', p_gate)
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.lock_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_gate FROM PUBLIC;
