ALTER TABLE orchestration.revoked_tokens ADD CONSTRAINT ck_revoked_tokens_expiry CHECK (((expires_at IS NULL) OR (expires_at >= revoked_at)));
