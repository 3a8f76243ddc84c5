-- Any member of symphony_owner may run the next upgrade, not only the login that ran the first one.
-- The default privileges of that login may have granted the table to others.
DO $$
DECLARE
  v_grantee text;
BEGIN
  ALTER TABLE orchestration.alembic_version OWNER TO symphony_owner;
  FOR v_grantee IN
    SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
    FROM pg_catalog.pg_class c
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x
    WHERE c.oid = 'orchestration.alembic_version'::regclass
      AND x.grantee <> c.relowner
  LOOP
    EXECUTE 'REVOKE ALL ON orchestration.alembic_version FROM ' || v_grantee;
  END LOOP;
END
$$
