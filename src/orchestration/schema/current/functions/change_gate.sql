CREATE OR REPLACE FUNCTION orchestration.change_gate()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- Argument of the trigger: the gate. The lock waits for the writers that share it; the row's new
-- version tells writers with an older snapshot.
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
$function$;
-- owner: symphony_owner
