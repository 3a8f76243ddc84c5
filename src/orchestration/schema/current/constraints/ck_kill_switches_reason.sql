ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_reason CHECK (((octet_length(reason) >= 1) AND (octet_length(reason) <= 4000)));
