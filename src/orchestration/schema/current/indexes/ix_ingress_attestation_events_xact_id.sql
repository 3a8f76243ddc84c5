CREATE INDEX ix_ingress_attestation_events_xact_id ON orchestration.ingress_attestation_events USING brin (xact_id);
