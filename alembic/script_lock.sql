-- A script does not wait for another upgrade, because that could be a deadlock: CREATE INDEX
-- CONCURRENTLY of the other upgrade waits for the snapshot of every running statement.
DO $$
BEGIN
  IF NOT pg_catalog.pg_try_advisory_lock(:key) THEN
    RAISE EXCEPTION 'Another upgrade of this database is running: run this script when it has ended'
      USING ERRCODE = 'lock_not_available';
  END IF;
END
$$
