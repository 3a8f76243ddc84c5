ALTER TABLE orchestration.instructions ADD CONSTRAINT fk_instructions_attestation_id FOREIGN KEY (attestation_id) REFERENCES orchestration.ingress_attestations(id);
