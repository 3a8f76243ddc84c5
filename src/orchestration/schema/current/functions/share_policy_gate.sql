CREATE FUNCTION orchestration.share_policy_gate() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  -- A client that stops in this transaction holds the gate, and every change waits for it.
  v_bound text := orchestration.bound_idle_time();
BEGIN
  LOCK TABLE orchestration.policy_gate IN ROW SHARE MODE;
  -- An older snapshot would read past the lock: the row, updated by every change, answers 40001.
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    PERFORM 1 FROM orchestration.policy_gate WHERE singleton FOR SHARE;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-002', 'P0002', 'policy_gate has lost its row', 'policy_gate', '{}',
        'Insert its one row again, as owner: INSERT INTO orchestration.policy_gate DEFAULT VALUES'
      );
    END IF;
  END IF;
END
$$;

ALTER FUNCTION orchestration.share_policy_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.share_policy_gate FROM PUBLIC;
