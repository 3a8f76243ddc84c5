-- Alembic reads the version table without SET ROLE, so the login must inherit the owner's rights.
DO $$
DECLARE
  v_login text := pg_catalog.quote_ident(current_user);
BEGIN
  FOR attempt IN 1 .. 50 LOOP
    EXIT WHEN pg_catalog.pg_has_role('symphony_owner', 'USAGE');
    IF current_setting('server_version_num')::integer < 160000 THEN
      -- Before PostgreSQL 16, INHERIT is an attribute of the login and applies to all memberships.
      RAISE EXCEPTION 'The login % must inherit the rights of its roles: ALTER ROLE % INHERIT',
        v_login, v_login USING ERRCODE = 'invalid_grant_operation';
    END IF;
    BEGIN
      EXECUTE 'GRANT symphony_owner TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
    EXCEPTION
      WHEN duplicate_object OR unique_violation OR internal_error THEN
        PERFORM pg_catalog.pg_sleep(0.05);
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'The login % must be able to act as the existing role symphony_owner: '
          'GRANT symphony_owner TO % WITH INHERIT TRUE', v_login, v_login
          USING ERRCODE = 'insufficient_privilege';
    END;
  END LOOP;
END
$$
