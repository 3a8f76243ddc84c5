CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.revoked_client_certs FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001', 'revocation_no', 'revoked_at');
-- enabled: A
