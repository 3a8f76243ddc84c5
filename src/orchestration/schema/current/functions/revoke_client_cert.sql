CREATE FUNCTION orchestration.revoke_client_cert(
  p_cert_fingerprint_sha256 text,
  p_reason_code text,
  p_revoked_by text DEFAULT SESSION_USER,
  p_expires_at timestamptz DEFAULT NULL,
  p_revoked_at timestamptz DEFAULT NULL
) RETURNS SETOF orchestration.revoked_client_certs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'revoked_client_certs', ARRAY['cert_fingerprint_sha256', 'reason_code', 'revoked_by'],
    ARRAY[p_cert_fingerprint_sha256, p_reason_code, p_revoked_by]
  );
  PERFORM orchestration.lock_gate('revocation_gate');
  -- Return a stored record that lasts at least as long as the requested one, if it is in force. A
  -- record that has expired must also begin as early: that is a repeated call or import.
  RETURN QUERY
  SELECT r.*
  FROM orchestration.revoked_client_certs r
  WHERE r.cert_fingerprint_sha256 = p_cert_fingerprint_sha256
    AND (r.expires_at IS NULL OR r.expires_at >= p_expires_at)
    AND (
      p_revoked_at IS NULL
      OR r.revoked_at <= p_revoked_at
      OR EXISTS (
        SELECT FROM orchestration.revoked_client_certs_in_force f
        WHERE f.cert_fingerprint_sha256 = r.cert_fingerprint_sha256 AND f.revocation_no = r.revocation_no
      )
    )
  ORDER BY r.expires_at DESC NULLS FIRST, r.revocation_no
  LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.revoked_client_certs
    (cert_fingerprint_sha256, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_cert_fingerprint_sha256, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  RETURNING *;
END
$$;

ALTER FUNCTION orchestration.revoke_client_cert OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.revoke_client_cert FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.revoke_client_cert TO symphony_control;
