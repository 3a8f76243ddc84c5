CREATE FUNCTION orchestration.record_outbox_act() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- Argument of the trigger: the column that numbers the rows of an item. What a worker records is no
-- act of governance.
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT coalesce(n.entered ->> 'action', 'RESOLVE') AS act,
         TG_TABLE_NAME,
         jsonb_object_agg(
           (n.entered ->> 'outbox_id') || '/' || (n.entered ->> TG_ARGV[0]), n.entered - 'xact_id')
  FROM (SELECT to_jsonb(i) AS entered FROM inserted i) n
  WHERE n.entered ->> 'source' IS DISTINCT FROM 'WORKER'
  GROUP BY act
  ORDER BY act;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_outbox_act OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_outbox_act FROM PUBLIC;
