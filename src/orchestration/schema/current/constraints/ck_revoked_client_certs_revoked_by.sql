ALTER TABLE orchestration.revoked_client_certs ADD CONSTRAINT ck_revoked_client_certs_revoked_by CHECK (((octet_length(revoked_by) >= 1) AND (octet_length(revoked_by) <= 1000)));
