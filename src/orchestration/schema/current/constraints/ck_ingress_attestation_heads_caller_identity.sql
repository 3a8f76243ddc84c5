ALTER TABLE orchestration.ingress_attestation_heads ADD CONSTRAINT ck_ingress_attestation_heads_caller_identity CHECK ((caller_identity <> ''::text));
