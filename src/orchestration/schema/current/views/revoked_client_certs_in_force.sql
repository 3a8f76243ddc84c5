-- A stored revocation was not in the future when it was recorded. The views therefore do not
-- compare revoked_at with a clock that may have been set back since (INV-REV-007).
CREATE VIEW orchestration.revoked_client_certs_in_force
WITH (security_invoker = true)
AS
SELECT cert_fingerprint_sha256, revocation_no, revoked_at, expires_at, reason_code
FROM orchestration.revoked_client_certs
WHERE expires_at IS NULL
   OR clock_timestamp() < expires_at;

ALTER VIEW orchestration.revoked_client_certs_in_force OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revoked_client_certs_in_force
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor;
