CREATE VIEW orchestration.revoked_client_certs_in_force WITH (security_invoker=true) AS
 SELECT cert_fingerprint_sha256,
    revocation_no,
    revoked_at,
    expires_at,
    reason_code
   FROM orchestration.revoked_client_certs
  WHERE ((expires_at IS NULL) OR (clock_timestamp() < expires_at));
-- owner: symphony_owner
