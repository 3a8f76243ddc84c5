CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestations FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation();
-- enabled: A
