CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_events FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001');
-- enabled: A
