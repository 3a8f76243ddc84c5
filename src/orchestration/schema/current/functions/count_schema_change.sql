CREATE FUNCTION orchestration.count_schema_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Counted, so that no two changes of the revision look the same in the audit log.
BEGIN
  NEW.changes := OLD.changes + 1;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.count_schema_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.count_schema_change FROM PUBLIC;
