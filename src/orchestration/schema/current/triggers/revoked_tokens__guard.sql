CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_tokens FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('token_hash');
-- enabled: A
