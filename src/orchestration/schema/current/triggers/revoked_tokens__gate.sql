CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_tokens FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate');
-- enabled: A
