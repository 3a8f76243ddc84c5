ALTER TABLE orchestration.revoked_client_certs ADD CONSTRAINT pk_revoked_client_certs PRIMARY KEY (cert_fingerprint_sha256, revocation_no);
