ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_prev_hash CHECK (((chain_seq = 1) = (prev_hash = ''::text)));
