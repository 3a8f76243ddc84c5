CREATE TRIGGER heads AFTER INSERT ON orchestration.ingress_attestations REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_attestation_heads();
-- enabled: O
