CREATE INDEX ix_revoked_client_certs_revoked_at ON orchestration.revoked_client_certs USING btree (revoked_at);
