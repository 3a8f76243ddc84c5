ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_idempotency_key CHECK ((idempotency_key <> ''::text));
