ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_description CHECK (((octet_length(description) >= 1) AND (octet_length(description) <= 4000)));
