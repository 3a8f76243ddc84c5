ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_caller_identity CHECK ((caller_identity <> ''::text));
