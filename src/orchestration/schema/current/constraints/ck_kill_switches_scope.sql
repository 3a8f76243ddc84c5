ALTER TABLE orchestration.kill_switches ADD CONSTRAINT ck_kill_switches_scope CHECK (
CASE
    WHEN (scope = ANY (ARRAY['GLOBAL'::text, 'INGEST'::text, 'EXECUTION'::text, 'DISPATCH'::text])) THEN (target IS NULL)
    WHEN (scope = ANY (ARRAY['PARTICIPANT'::text, 'RAIL'::text])) THEN ((octet_length(COALESCE(target, ''::text)) >= 1) AND (octet_length(COALESCE(target, ''::text)) <= 1000))
    ELSE false
END);
