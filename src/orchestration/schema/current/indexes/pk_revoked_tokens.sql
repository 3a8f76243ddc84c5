CREATE UNIQUE INDEX pk_revoked_tokens ON orchestration.revoked_tokens USING btree (token_hash, revocation_no);
