ALTER TABLE orchestration.ingress_attestation_events ADD CONSTRAINT ck_ingress_attestation_events_recorded_by CHECK ((recorded_by <> ''::text));
