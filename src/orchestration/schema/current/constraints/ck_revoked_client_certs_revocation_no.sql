ALTER TABLE orchestration.revoked_client_certs ADD CONSTRAINT ck_revoked_client_certs_revocation_no CHECK ((revocation_no >= 1));
