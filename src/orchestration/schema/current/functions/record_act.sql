CREATE FUNCTION orchestration.record_act() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- The time zone is set to UTC, so that the JSON text of a time does not depend on the session.
-- Arguments of the trigger: the key column, the action if no column contains it, and the second key
-- column if there is one. A statement that inserts rows of two actions gets two entries.
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT coalesce(TG_ARGV[1], n.entered ->> 'action') AS action,
         TG_TABLE_NAME,
         jsonb_object_agg(
           concat_ws('/', n.entered ->> TG_ARGV[0], n.entered ->> TG_ARGV[2]), n.entered - 'xact_id'
         )
  FROM (SELECT to_jsonb(i) AS entered FROM inserted i) n
  GROUP BY action
  ORDER BY action;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_act OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_act FROM PUBLIC;
