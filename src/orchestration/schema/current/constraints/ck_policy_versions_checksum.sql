ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_checksum CHECK (((octet_length(checksum) = 64) AND (checksum ~ '^[0-9a-f]*$'::text)));
