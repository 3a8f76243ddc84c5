CREATE OR REPLACE FUNCTION orchestration.copies_a_subscription()
 RETURNS boolean
 LANGUAGE sql
 STABLE
RETURN (EXISTS (SELECT FROM pg_stat_subscription s WHERE (s.pid = pg_backend_pid())));
-- owner: symphony_owner
