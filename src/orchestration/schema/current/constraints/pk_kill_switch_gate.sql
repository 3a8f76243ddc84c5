ALTER TABLE orchestration.kill_switch_gate ADD CONSTRAINT pk_kill_switch_gate PRIMARY KEY (singleton);
