ALTER TABLE orchestration.revoked_tokens ADD CONSTRAINT pk_revoked_tokens PRIMARY KEY (token_hash, revocation_no);
