-- Format orchestration.audit.v1. It must never change. Fields are encoded as in
-- attestation_record_hash.
CREATE FUNCTION orchestration.audit_record_hash(p orchestration.audit_log)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(
  '22:orchestration.audit.v1,'
  || length((p).chain_seq::text) || ':' || (p).chain_seq || ','
  || octet_length((p).action) || ':' || (p).action || ','
  || octet_length((p).table_name) || ':' || (p).table_name || ','
  || coalesce(octet_length((p).before::text) || ':' || (p).before::text, '-') || ','
  || octet_length((p).after::text) || ':' || (p).after::text || ','
  || length(((extract(epoch FROM (p).occurred_at) * 1000000)::bigint)::text) || ':'
  || (extract(epoch FROM (p).occurred_at) * 1000000)::bigint || ','
  || octet_length((p).db_user) || ':' || (p).db_user || ','
  || octet_length((p).db_role) || ':' || (p).db_role || ','
  || coalesce(octet_length(host((p).client_addr)) || ':' || host((p).client_addr), '-') || ','
  || octet_length((p).prev_hash) || ':' || (p).prev_hash || ',',
  'UTF8'
)), 'hex');

ALTER FUNCTION orchestration.audit_record_hash OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.audit_record_hash FROM PUBLIC;
