CREATE FUNCTION orchestration.refuse_long_texts(
  p_table text,
  p_columns text[],
  p_values text[],
  p_limit integer DEFAULT 1000
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Call it before taking a lock: the CHECK constraints of the table reject a long text only later.
BEGIN
  FOR i IN 1 .. cardinality(p_values) LOOP
    IF octet_length(p_values[i]) > p_limit THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-001', '23514', format('%s must be at most %s octets', p_columns[i], p_limit),
        p_table,
        jsonb_build_object('column', p_columns[i], 'octets', octet_length(p_values[i])),
        'Shorten the text.', p_columns[i]
      );
    END IF;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.refuse_long_texts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_long_texts FROM PUBLIC;
