ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_key CHECK (((octet_length(key) >= 1) AND (octet_length(key) <= 1000)));
