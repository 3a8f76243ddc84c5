ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_action CHECK ((action = ANY (ARRAY['ENGAGE'::text, 'RELEASE'::text])));
