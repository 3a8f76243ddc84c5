CREATE OR REPLACE FUNCTION orchestration.record_migration()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (
    'MIGRATE', 'schema_revision',
    CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END,
    to_jsonb(NEW)
  );
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
