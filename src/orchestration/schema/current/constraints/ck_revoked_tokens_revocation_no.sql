ALTER TABLE orchestration.revoked_tokens ADD CONSTRAINT ck_revoked_tokens_revocation_no CHECK ((revocation_no >= 1));
