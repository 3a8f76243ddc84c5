CREATE OR REPLACE FUNCTION orchestration.refuse_unreadable(p_table text, p_sqlstate text, p_message text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
AS $function$
-- The server's own message quotes the value in full.
BEGIN
  PERFORM orchestration.raise_invariant(
    'INV-API-001',
    CASE
      WHEN p_sqlstate IN ('22P02', '22003', '22007', '22008', '22P05') THEN p_sqlstate
      ELSE '22023'
    END,
    p_message, p_table, '{}', 'Give every value in the form that the type of its column takes.'
  );
END
$function$;
-- owner: symphony_owner
