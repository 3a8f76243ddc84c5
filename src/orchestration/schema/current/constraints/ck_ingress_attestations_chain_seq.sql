ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_chain_seq CHECK ((chain_seq >= 1));
