ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_idempotency_key CHECK (((octet_length(idempotency_key) >= 1) AND (octet_length(idempotency_key) <= 1000)));
