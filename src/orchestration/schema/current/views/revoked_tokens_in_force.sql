CREATE VIEW orchestration.revoked_tokens_in_force
WITH (security_invoker = true)
AS
SELECT token_hash, revocation_no, revoked_at, expires_at, reason_code
FROM orchestration.revoked_tokens
WHERE expires_at IS NULL
   OR clock_timestamp() < expires_at;

ALTER VIEW orchestration.revoked_tokens_in_force OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revoked_tokens_in_force
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor;
