ALTER TABLE orchestration.kill_switch_gate ADD CONSTRAINT ck_kill_switch_gate_singleton CHECK (singleton);
