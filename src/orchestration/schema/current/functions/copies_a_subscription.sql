-- A subscription's worker brings rows that were judged where they were written: in no order of
-- tables, nor of the rows of one, when it copies them, and later than they say in any case. The
-- guards then judge what a row tells alone. Whoever only sets session_replication_role is judged as
-- everybody.
CREATE FUNCTION orchestration.copies_a_subscription() RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
  SELECT FROM pg_stat_subscription s
  WHERE s.pid = pg_backend_pid()
);

ALTER FUNCTION orchestration.copies_a_subscription OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.copies_a_subscription FROM PUBLIC;
