CREATE OR REPLACE FUNCTION orchestration.record_policy_entry()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT 'ROTATE', 'policy_versions', jsonb_build_object(i.id, to_jsonb(i) - 'xact_id')
  FROM inserted i
  JOIN orchestration.policy_versions n ON n.id = i.id
  WHERE NOT EXISTS (
    SELECT FROM orchestration.policy_versions d
    WHERE d.status = 'GRACE' AND d.xmin = n.xmin AND d.cmin = n.cmin
  );
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
