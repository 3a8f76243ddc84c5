ALTER TABLE orchestration.policy_versions ADD CONSTRAINT pk_policy_versions PRIMARY KEY (id);
