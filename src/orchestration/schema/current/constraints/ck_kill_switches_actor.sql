ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_actor CHECK (((octet_length(actor) >= 1) AND (octet_length(actor) <= 1000)));
