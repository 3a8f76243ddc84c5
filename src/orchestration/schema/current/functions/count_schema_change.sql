CREATE FUNCTION orchestration.count_schema_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The counter makes any two changes of the revision different entries in the audit log.
BEGIN
  NEW.changes := OLD.changes + 1;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.count_schema_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.count_schema_change FROM PUBLIC;
