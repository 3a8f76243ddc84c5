CREATE INDEX ix_revoked_client_certs_expires_at ON orchestration.revoked_client_certs USING btree (expires_at);
