CREATE FUNCTION orchestration.require_credential_not_revoked(
  p_client_cert_fingerprint_sha256 text DEFAULT NULL,
  p_token_hash text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_malformed text := CASE
    WHEN octet_length(p_client_cert_fingerprint_sha256) <> 64
      OR p_client_cert_fingerprint_sha256 !~ '^[0-9a-f]*$'
      THEN 'p_client_cert_fingerprint_sha256'
    WHEN octet_length(p_token_hash) <> 64 OR p_token_hash !~ '^[0-9a-f]*$' THEN 'p_token_hash'
  END;
BEGIN
  IF v_malformed IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-003', 'P7201', format('%s must be a SHA-256 in lowercase hex', v_malformed),
      'revoked_tokens', '{}',
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.'
    );
  END IF;
  PERFORM orchestration.share_gate('revocation_gate');
  IF EXISTS (
    SELECT FROM orchestration.revoked_client_certs_in_force r
    WHERE r.cert_fingerprint_sha256 = p_client_cert_fingerprint_sha256
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the client certificate is revoked', 'revoked_client_certs',
      jsonb_build_object('credential', 'CLIENT_CERT'),
      'Have the client present another certificate.', 'cert_fingerprint_sha256'
    );
  END IF;
  IF EXISTS (
    SELECT FROM orchestration.revoked_tokens_in_force r WHERE r.token_hash = p_token_hash
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the token is revoked', 'revoked_tokens',
      jsonb_build_object('credential', 'TOKEN'),
      'Have the caller obtain another token.', 'token_hash'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.require_credential_not_revoked OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.require_credential_not_revoked FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.require_credential_not_revoked
TO symphony_ingest, symphony_executor, symphony_control;
