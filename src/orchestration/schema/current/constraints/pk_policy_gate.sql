ALTER TABLE orchestration.policy_gate ADD CONSTRAINT pk_policy_gate PRIMARY KEY (singleton);
