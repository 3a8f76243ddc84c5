CREATE INDEX ix_revoked_client_certs_xact_id ON orchestration.revoked_client_certs USING brin (xact_id);
