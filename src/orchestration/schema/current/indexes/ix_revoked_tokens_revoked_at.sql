CREATE INDEX ix_revoked_tokens_revoked_at ON orchestration.revoked_tokens USING btree (revoked_at);
