CREATE FUNCTION orchestration.record_redrive() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- The audit log records a redrive, unlike an enqueue, because an operator decides on it. The entry
-- leaves out payload and context: both can be erased later, but the audit log cannot.
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
$$;

ALTER FUNCTION orchestration.record_redrive OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_redrive FROM PUBLIC;
