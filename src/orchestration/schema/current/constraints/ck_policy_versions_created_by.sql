ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_created_by CHECK ((created_by <> ''::text));
