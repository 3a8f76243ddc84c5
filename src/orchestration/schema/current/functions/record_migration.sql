CREATE FUNCTION orchestration.record_migration() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (
    'MIGRATE', 'schema_revision',
    CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END,
    to_jsonb(NEW)
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_migration OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_migration FROM PUBLIC;
