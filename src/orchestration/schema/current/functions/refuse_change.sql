CREATE FUNCTION orchestration.refuse_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Arguments of the trigger: the invariant, the SQLSTATE, and the key columns to show in DETAIL.
DECLARE
  v_row jsonb := CASE WHEN TG_LEVEL = 'ROW' THEN to_jsonb(OLD) END;
  v_detail jsonb := '{}';
BEGIN
  IF v_row IS NOT NULL THEN
    FOR i IN 2 .. TG_NARGS - 1 LOOP
      v_detail := v_detail || jsonb_build_object(TG_ARGV[i], v_row -> TG_ARGV[i]);
    END LOOP;
  END IF;
  PERFORM orchestration.raise_invariant(
    TG_ARGV[0], TG_ARGV[1],
    format('%s of %s is forbidden', TG_OP, TG_TABLE_NAME),
    TG_TABLE_NAME,
    v_detail,
    'Stored rows cannot be changed. Call a function of this schema to record a new row.'
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.refuse_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_change FROM PUBLIC;
