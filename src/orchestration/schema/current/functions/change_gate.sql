CREATE FUNCTION orchestration.change_gate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the gate. The lock waits for the transactions that share it. The update of
-- the row makes a transaction with an older snapshot fail with 40001 when it shares the gate.
BEGIN
  PERFORM orchestration.lock_gate(TG_ARGV[0]);
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NULL;
  END IF;
  EXECUTE format(
    'UPDATE orchestration.%I SET changes = changes + 1, changed_at = clock_timestamp()',
    TG_ARGV[0]
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.change_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.change_gate FROM PUBLIC;
