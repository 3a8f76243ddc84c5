ALTER TABLE orchestration.ingress_attestation_heads ADD CONSTRAINT pk_ingress_attestation_heads PRIMARY KEY (caller_identity);
