ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_id CHECK (((octet_length(id) >= 1) AND (octet_length(id) <= 1000)));
