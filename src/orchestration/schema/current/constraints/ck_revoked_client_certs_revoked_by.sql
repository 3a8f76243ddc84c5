ALTER TABLE orchestration.revoked_client_certs ADD CONSTRAINT ck_revoked_client_certs_revoked_by CHECK ((revoked_by <> ''::text));
