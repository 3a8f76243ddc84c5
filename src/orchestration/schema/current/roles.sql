-- Roles belong to the server, so another database may have created them already.
DO $$
DECLARE
  v_role text;
BEGIN
  FOREACH v_role IN ARRAY ARRAY['symphony_owner', 'symphony_ingest', 'symphony_executor',
    'symphony_control', 'symphony_readonly', 'symphony_auditor']
  LOOP
    IF to_regrole(v_role) IS NULL THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
    END IF;
  END LOOP;
END
$$;

CREATE SCHEMA orchestration AUTHORIZATION symphony_owner;
GRANT USAGE ON SCHEMA orchestration
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
