ALTER TABLE orchestration.ingress_attestations ADD CONSTRAINT ck_ingress_attestations_record_hash CHECK (((octet_length(record_hash) = 64) AND (record_hash ~ '^[0-9a-f]*$'::text)));
