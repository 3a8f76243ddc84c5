ALTER TABLE orchestration.kill_switches ADD CONSTRAINT pk_kill_switches PRIMARY KEY (event_no);
