ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_token_hash CHECK (((octet_length(token_hash) = 64) AND (token_hash ~ '^[0-9a-f]*$'::text)));
