ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_event_no CHECK ((event_no >= 1));
