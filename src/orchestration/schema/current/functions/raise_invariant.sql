CREATE OR REPLACE FUNCTION orchestration.raise_invariant(p_invariant text, p_errcode text, p_message text, p_table text, p_detail jsonb, p_hint text, p_column text DEFAULT NULL::text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
BEGIN
  -- RAISE refuses a null option, and would hide the refusal behind 22004.
  IF p_column IS NULL THEN
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = p_invariant || ': ' || p_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      DETAIL = p_detail::text,
      HINT = p_hint;
  ELSE
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = p_invariant || ': ' || p_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      COLUMN = p_column,
      DETAIL = p_detail::text,
      HINT = p_hint;
  END IF;
END
$function$;
-- owner: symphony_owner
