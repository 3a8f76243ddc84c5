CREATE FUNCTION orchestration.lock_gate(p_gate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A transaction that changes what the gate protects calls this first. The lock waits for the
-- transactions that share the gate (share_gate). A transaction that wants to share it later waits for
-- this one.
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
        v_invariant, '55P03', format('%s was not released within lock_timeout', p_gate), p_gate,
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
        'Try again. gate_holders() shows which sessions hold the gate.'
      );
  END;
  -- A subscription can copy the protected rows before it copies the gate's row.
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN;
  END IF;
  -- Under a snapshot older than the last change this fails with 40001, before anything is checked
  -- against rows that the snapshot does not see.
  EXECUTE format('SELECT FROM orchestration.%I WHERE singleton FOR UPDATE', p_gate);
  GET DIAGNOSTICS v_rows = ROW_COUNT;
  IF v_rows <> 1 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', format('%s has no row', p_gate), p_gate, '{}',
      format('As symphony_owner, run: INSERT INTO orchestration.%I DEFAULT VALUES', p_gate)
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.lock_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_gate FROM PUBLIC;
