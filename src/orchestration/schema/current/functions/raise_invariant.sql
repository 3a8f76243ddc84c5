CREATE FUNCTION orchestration.raise_invariant(
  p_invariant text,
  p_errcode text,
  p_message text,
  p_table text,
  p_detail jsonb,
  p_hint text,
  p_column text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  -- The message and DETAIL can contain values that the caller passed. They are cut to 200 characters,
  -- so that a caller cannot fill the log.
  v_message text := left(p_invariant || ': ' || p_message, 200);
  v_detail jsonb := p_detail;
BEGIN
  IF octet_length(p_detail::text) > 200 THEN
    SELECT jsonb_object_agg(
      d.key,
      CASE jsonb_typeof(d.value)
        WHEN 'string' THEN to_jsonb(left(d.value #>> '{}', 200))
        ELSE d.value
      END
    )
    INTO v_detail
    FROM jsonb_each(p_detail) d;
  END IF;
  -- RAISE fails with 22004 if an option is null, so COLUMN is left out if there is none.
  IF p_column IS NULL THEN
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = v_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      DETAIL = v_detail::text,
      HINT = p_hint;
  ELSE
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = v_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      COLUMN = p_column,
      DETAIL = v_detail::text,
      HINT = p_hint;
  END IF;
END
$$;

ALTER FUNCTION orchestration.raise_invariant OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.raise_invariant FROM PUBLIC;
