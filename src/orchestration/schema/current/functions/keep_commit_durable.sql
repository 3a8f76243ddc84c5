CREATE FUNCTION orchestration.keep_commit_durable() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A watermark of revocations_since covers the transactions whose revocations the reader saw. Their
-- commits must therefore be flushed before they become visible. The trigger is deferred, so that it
-- runs after the last statement in which the login could set synchronous_commit to off.
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.keep_commit_durable OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.keep_commit_durable FROM PUBLIC;
