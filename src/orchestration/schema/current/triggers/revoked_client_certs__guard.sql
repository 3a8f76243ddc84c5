CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_client_certs FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('cert_fingerprint_sha256');
-- enabled: A
