ALTER TABLE orchestration.kill_switches ADD CONSTRAINT uq_kill_switches_key UNIQUE (key);
