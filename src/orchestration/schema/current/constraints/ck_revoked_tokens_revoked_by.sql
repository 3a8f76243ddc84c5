ALTER TABLE orchestration.revoked_tokens ADD CONSTRAINT ck_revoked_tokens_revoked_by CHECK ((revoked_by <> ''::text));
