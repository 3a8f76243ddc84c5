ALTER TABLE orchestration.revocation_gate ADD CONSTRAINT ck_revocation_gate_singleton CHECK (singleton);
