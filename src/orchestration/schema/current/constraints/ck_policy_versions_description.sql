ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_description CHECK ((description <> ''::text));
