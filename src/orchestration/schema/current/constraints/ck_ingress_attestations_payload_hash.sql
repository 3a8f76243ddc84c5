ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_payload_hash CHECK (((octet_length(payload_hash) = 64) AND (payload_hash ~ '^[0-9a-f]*$'::text)));
