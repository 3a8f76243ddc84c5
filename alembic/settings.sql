-- Sessions queue behind a revision that waits for a lock. lock_timeout is shorter than theirs, so
-- that they do not fail because of it. Rotating and revoking have a lock_timeout of 2 s, and the
-- library's engines have one of 10 s. search_path is set because Alembic's own statements would
-- otherwise use operators that somebody created in `public`.
SET search_path = pg_catalog;
SET lock_timeout = '1s';
SET statement_timeout = '10min'
