CREATE INDEX ix_revoked_tokens_xact_id ON orchestration.revoked_tokens USING brin (xact_id);
