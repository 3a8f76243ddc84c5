CREATE FUNCTION orchestration.refuse_unreadable(p_table text, p_sqlstate text, p_message text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The error of the server is replaced because its CONTEXT can quote the whole value.
BEGIN
  PERFORM orchestration.raise_invariant(
    'INV-API-001',
    CASE
      WHEN p_sqlstate IN ('22P02', '22003', '22007', '22008', '22P05') THEN p_sqlstate
      ELSE '22023'
    END,
    p_message, p_table, '{}', 'Write each value as valid input for the type of its column.'
  );
END
$$;

ALTER FUNCTION orchestration.refuse_unreadable OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_unreadable FROM PUBLIC;
