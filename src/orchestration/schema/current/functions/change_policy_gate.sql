CREATE OR REPLACE FUNCTION orchestration.change_policy_gate()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  LOCK TABLE orchestration.policy_gate IN EXCLUSIVE MODE;
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NULL;
  END IF;
  UPDATE orchestration.policy_gate
  SET changes = changes + 1, changed_at = clock_timestamp()
  WHERE singleton;
  IF NOT FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'policy_gate has lost its row', 'policy_gate', '{}',
      'Insert its one row again, as owner: INSERT INTO orchestration.policy_gate DEFAULT VALUES'
    );
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
