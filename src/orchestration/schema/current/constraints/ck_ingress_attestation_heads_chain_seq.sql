ALTER TABLE orchestration.ingress_attestation_heads ADD CONSTRAINT ck_ingress_attestation_heads_chain_seq CHECK ((chain_seq >= 0));
