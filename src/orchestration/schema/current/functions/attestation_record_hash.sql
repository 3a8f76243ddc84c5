-- Format orchestration.attestation.v1. It must never change. Each field is its length in bytes, a
-- colon, its UTF-8 bytes and a comma. A null is a hyphen and a comma. Times are microseconds since
-- 1970.
CREATE FUNCTION orchestration.attestation_record_hash(p orchestration.ingress_attestations)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(
  '28:orchestration.attestation.v1,'
  || '36:' || (p).id::text || ','
  || octet_length((p).caller_identity) || ':' || (p).caller_identity || ','
  || length((p).chain_seq::text) || ':' || (p).chain_seq || ','
  || octet_length((p).idempotency_key) || ':' || (p).idempotency_key || ','
  || '64:' || (p).payload_hash || ','
  || coalesce('64:' || (p).signature_hash, '-') || ','
  || coalesce('64:' || (p).client_cert_fingerprint_sha256, '-') || ','
  || coalesce('64:' || (p).token_hash, '-') || ','
  || octet_length((p).policy_version_id) || ':' || (p).policy_version_id || ','
  || CASE WHEN (p).execution_started THEN '1:t,' ELSE '1:f,' END
  || CASE WHEN (p).execution_completed THEN '1:t,' ELSE '1:f,' END
  || coalesce(octet_length((p).terminal_status) || ':' || (p).terminal_status, '-') || ','
  || length(((extract(epoch FROM (p).attested_at) * 1000000)::bigint)::text) || ':'
  || (extract(epoch FROM (p).attested_at) * 1000000)::bigint || ','
  || octet_length((p).db_user) || ':' || (p).db_user || ','
  || octet_length((p).prev_hash) || ':' || (p).prev_hash || ',',
  'UTF8'
)), 'hex');

ALTER FUNCTION orchestration.attestation_record_hash OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.attestation_record_hash FROM PUBLIC;
