CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_client_certs REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('cert_fingerprint_sha256', 'REVOKE', 'revocation_no');
-- enabled: O
