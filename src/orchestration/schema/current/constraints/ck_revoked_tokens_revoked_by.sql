ALTER TABLE orchestration.revoked_tokens ADD CONSTRAINT ck_revoked_tokens_revoked_by CHECK (((octet_length(revoked_by) >= 1) AND (octet_length(revoked_by) <= 1000)));
