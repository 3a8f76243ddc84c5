-- An earlier downgrade may have left an empty version table. It is dropped, because the script
-- creates the table again.
DO $$
DECLARE
  v_start text := :start;
  v_found text := 'base';
BEGIN
  IF pg_catalog.to_regclass('orchestration.alembic_version') IS NOT NULL THEN
    SELECT coalesce(min(version_num), 'base') INTO v_found FROM orchestration.alembic_version;
    IF v_found = 'base' THEN
      DROP TABLE orchestration.alembic_version;
    END IF;
  END IF;
  IF v_found <> v_start THEN
    RAISE EXCEPTION 'This script starts at % and the database is at %: write a script that starts '
      'at %', v_start, v_found, v_found USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
END
$$
