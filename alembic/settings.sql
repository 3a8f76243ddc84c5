-- A session that queues behind a waiting revision must not wait longer than lock_timeout, nor be
-- refused for it: rotating and revoking give up after 2 s, the library's engines after 10 s. Under
-- another search_path, Alembic's own statements would use operators that anybody put into `public`.
SET search_path = pg_catalog;
SET lock_timeout = '1s';
SET statement_timeout = '10min'
