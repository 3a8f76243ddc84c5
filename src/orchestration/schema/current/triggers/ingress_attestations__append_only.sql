CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.ingress_attestations FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001', 'id', 'caller_identity', 'chain_seq');
-- enabled: A
