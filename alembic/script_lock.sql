-- A script cannot wait for its turn: the snapshot of a waiting statement and the CREATE INDEX
-- CONCURRENTLY of the upgrade before it would wait for each other.
DO $$
BEGIN
  IF NOT pg_catalog.pg_try_advisory_lock(:key) THEN
    RAISE EXCEPTION 'Another upgrade of this database is under way: load this script after its end'
      USING ERRCODE = 'lock_not_available';
  END IF;
END
$$
