ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_execution CHECK ((execution_started OR (NOT execution_completed)));
