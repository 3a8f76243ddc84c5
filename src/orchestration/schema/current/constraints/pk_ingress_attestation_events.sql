ALTER TABLE orchestration.ingress_attestation_events ADD CONSTRAINT pk_ingress_attestation_events PRIMARY KEY (attestation_id, event);
