CREATE INDEX ix_ingress_attestations_xact_id ON orchestration.ingress_attestations USING brin (xact_id);
