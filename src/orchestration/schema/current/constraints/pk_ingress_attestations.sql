ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT pk_ingress_attestations PRIMARY KEY (id);
