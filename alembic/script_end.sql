RESET search_path;
RESET lock_timeout;
RESET statement_timeout;
DO $$ BEGIN PERFORM pg_catalog.pg_advisory_unlock(:key); END $$
