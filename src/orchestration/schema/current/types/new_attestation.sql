-- An element of append_attestations.
CREATE TYPE orchestration.new_attestation AS (
  caller_identity text,
  idempotency_key text,
  payload_hash text,
  policy_version_id text,
  signature_hash text,
  client_cert_fingerprint_sha256 text,
  token_hash text
);

ALTER TYPE orchestration.new_attestation OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_attestation FROM PUBLIC;
