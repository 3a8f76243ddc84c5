CREATE INDEX ix_revoked_tokens_expires_at ON orchestration.revoked_tokens USING btree (expires_at);
