CREATE FUNCTION orchestration.advance_attestation_heads() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- Update each caller's head once per statement; once per row would leave a dead tuple per record.
BEGIN
  UPDATE orchestration.ingress_attestation_heads h
  SET chain_seq = last.chain_seq, record_hash = last.record_hash
  FROM (
    SELECT DISTINCT ON (i.caller_identity) i.caller_identity, i.chain_seq, i.record_hash
    FROM inserted i
    ORDER BY i.caller_identity, i.chain_seq DESC
  ) last
  WHERE h.caller_identity = last.caller_identity;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_attestation_heads OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_attestation_heads FROM PUBLIC;
