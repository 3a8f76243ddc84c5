ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_caller_identity CHECK (((octet_length(caller_identity) >= 1) AND (octet_length(caller_identity) <= 1000)));
