ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_signature_hash CHECK (((octet_length(signature_hash) = 64) AND (signature_hash ~ '^[0-9a-f]*$'::text)));
