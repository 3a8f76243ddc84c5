CREATE OR REPLACE FUNCTION orchestration.count_schema_change()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  NEW.changes := OLD.changes + 1;
  RETURN NEW;
END
$function$;
-- owner: symphony_owner
