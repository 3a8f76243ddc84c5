ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_created_by CHECK (((octet_length(created_by) >= 1) AND (octet_length(created_by) <= 1000)));
