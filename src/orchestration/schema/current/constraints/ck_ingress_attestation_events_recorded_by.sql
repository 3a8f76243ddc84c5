ALTER TABLE orchestration.ingress_attestation_events ADD CONSTRAINT ck_ingress_attestation_events_recorded_by CHECK (((octet_length(recorded_by) >= 1) AND (octet_length(recorded_by) <= 1000)));
