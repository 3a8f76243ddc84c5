CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_client_certs FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate');
-- enabled: A
