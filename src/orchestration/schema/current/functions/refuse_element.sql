CREATE FUNCTION orchestration.refuse_element(
  p_table text,
  p_ordinal bigint,
  p_missing text,
  p_malformed text
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF p_missing IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '23502', format('%s must not be null', p_missing), p_table,
      jsonb_build_object('ordinal', p_ordinal, 'column', p_missing),
      format('Set %s in every element.', p_missing), p_missing
    );
  END IF;
  PERFORM orchestration.raise_invariant(
    'INV-API-001', '23514', format('%s is out of bounds or malformed', p_malformed), p_table,
    jsonb_build_object('ordinal', p_ordinal, 'column', p_malformed),
    'Text keys must have 1 to 1,000 octets, free texts at most 4,000. Payloads must be JSON objects'
      ' of at most 1,000,000 octets.',
    p_malformed
  );
END
$$;

ALTER FUNCTION orchestration.refuse_element OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_element FROM PUBLIC;
