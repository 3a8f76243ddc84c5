ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_reason CHECK ((reason <> ''::text));
