CREATE FUNCTION orchestration.share_gate(p_gate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A transaction that checks what the gate protects calls this first. Such transactions share the gate.
-- A change locks it exclusively (lock_gate), so no change commits between a check and the commit of
-- the transaction that made it.
DECLARE
  -- If the client stops responding in this transaction, every change of the gate waits for it.
  v_bound text := orchestration.bound_idle_time();
  v_rows bigint;
BEGIN
  -- Static statements, because every gated write comes here: EXECUTE costs about 4 us more per call.
  CASE p_gate
    WHEN 'kill_switch_gate' THEN
      LOCK TABLE orchestration.kill_switch_gate IN ROW SHARE MODE;
    WHEN 'policy_gate' THEN
      LOCK TABLE orchestration.policy_gate IN ROW SHARE MODE;
    WHEN 'revocation_gate' THEN
      LOCK TABLE orchestration.revocation_gate IN ROW SHARE MODE;
  END CASE;
  -- A snapshot that was taken before the lock does not see the changes that committed in between.
  -- Every change updates the gate's row, so locking the row fails with 40001 under such a snapshot.
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    EXECUTE format('SELECT FROM orchestration.%I WHERE singleton FOR SHARE', p_gate);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows <> 1 THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-002', 'P0002', format('%s has no row', p_gate), p_gate, '{}',
        format('As symphony_owner, run: INSERT INTO orchestration.%I DEFAULT VALUES', p_gate)
      );
    END IF;
  END IF;
END
$$;

ALTER FUNCTION orchestration.share_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.share_gate FROM PUBLIC;
