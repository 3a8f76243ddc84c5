CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_heads FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-005', 'P0001');
-- enabled: A
