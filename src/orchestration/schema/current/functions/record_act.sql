CREATE OR REPLACE FUNCTION orchestration.record_act()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
-- Arguments of the trigger: the key column, and the action where no column holds it.
DECLARE
  v_action text;
  v_after jsonb;
BEGIN
  SELECT coalesce(TG_ARGV[1], min(n.entered ->> 'action')),
         jsonb_object_agg(n.entered ->> TG_ARGV[0], n.entered - 'xact_id')
  INTO v_action, v_after
  FROM (SELECT to_jsonb(i) AS entered FROM inserted i) n;
  IF v_after IS NOT NULL THEN
    INSERT INTO orchestration.audit_log (action, table_name, after)
    VALUES (v_action, TG_TABLE_NAME, v_after);
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
