CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_tokens REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('token_hash', 'REVOKE', 'revocation_no');
-- enabled: O
