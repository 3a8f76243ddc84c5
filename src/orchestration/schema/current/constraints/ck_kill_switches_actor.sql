ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_actor CHECK ((actor <> ''::text));
