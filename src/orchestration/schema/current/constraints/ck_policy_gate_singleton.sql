ALTER TABLE orchestration.policy_gate ADD CONSTRAINT ck_policy_gate_singleton CHECK (singleton);
