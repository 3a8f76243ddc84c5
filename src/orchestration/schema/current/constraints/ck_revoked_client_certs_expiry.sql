ALTER TABLE orchestration.revoked_client_certs ADD CONSTRAINT ck_revoked_client_certs_expiry CHECK (((expires_at IS NULL) OR (expires_at >= revoked_at)));
