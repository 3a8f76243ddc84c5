ALTER TABLE orchestration.policy_versions ADD CONSTRAINT ck_policy_versions_id CHECK ((id <> ''::text));
