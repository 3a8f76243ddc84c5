CREATE OR REPLACE FUNCTION orchestration.record_redrive()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
BEGIN
  IF EXISTS (SELECT FROM inserted i WHERE i.redrive_no > 0) THEN
    INSERT INTO orchestration.audit_log (action, table_name, after)
    SELECT 'REDRIVE', 'payment_outbox_items',
           jsonb_object_agg(i.outbox_id, to_jsonb(i) - '{payload,payload_salt,context,xact_id}'::text[])
    FROM inserted i
    WHERE i.redrive_no > 0;
  END IF;
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
