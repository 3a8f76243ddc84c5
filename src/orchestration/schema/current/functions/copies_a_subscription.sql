-- True in the worker of a subscription. Its rows were checked on the server where they were
-- written. The initial copy loads tables in parallel and rows in any order, and every row arrives
-- after the timestamps that it carries. The guards therefore check only what a row shows by itself.
-- A session that merely sets session_replication_role gets all checks.
CREATE FUNCTION orchestration.copies_a_subscription() RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
  SELECT FROM pg_stat_subscription s
  WHERE s.pid = pg_backend_pid()
);

ALTER FUNCTION orchestration.copies_a_subscription OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.copies_a_subscription FROM PUBLIC;
