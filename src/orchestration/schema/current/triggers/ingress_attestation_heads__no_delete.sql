CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.ingress_attestation_heads FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-005', 'P0001', 'caller_identity', 'chain_seq');
-- enabled: A
