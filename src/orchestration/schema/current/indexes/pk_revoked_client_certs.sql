CREATE UNIQUE INDEX pk_revoked_client_certs ON orchestration.revoked_client_certs USING btree (cert_fingerprint_sha256, revocation_no);
