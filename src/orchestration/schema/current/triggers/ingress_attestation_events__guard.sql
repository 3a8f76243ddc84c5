CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestation_events FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation_event();
-- enabled: A
