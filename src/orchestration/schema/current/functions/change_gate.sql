CREATE OR REPLACE FUNCTION orchestration.change_gate()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- Argument of the trigger: the gate. The lock waits for the writers that share it; the row's new
-- version tells writers with an older snapshot.
DECLARE
  v_rows bigint;
BEGIN
  EXECUTE format('LOCK TABLE orchestration.%I IN EXCLUSIVE MODE', TG_ARGV[0]);
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NULL;
  END IF;
  EXECUTE format(
    'UPDATE orchestration.%I SET changes = changes + 1, changed_at = clock_timestamp()',
    TG_ARGV[0]
  );
  GET DIAGNOSTICS v_rows = ROW_COUNT;
  IF v_rows <> 1 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', format('%s has lost its row', TG_ARGV[0]), TG_ARGV[0], '{}',
      format('Insert it again, as owner: INSERT INTO orchestration.%I DEFAULT VALUES', TG_ARGV[0])
    );
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
