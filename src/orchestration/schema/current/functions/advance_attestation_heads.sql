CREATE OR REPLACE FUNCTION orchestration.advance_attestation_heads()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
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
$function$;
-- owner: symphony_owner
