CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON orchestration.ingress_attestation_events FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001', 'attestation_id', 'event');
-- enabled: A
