-- A SQL-standard body without a SET clause is inlined into its callers, which are on hot paths.
CREATE FUNCTION orchestration.bound_idle_time() RETURNS text
LANGUAGE sql VOLATILE
RETURN CASE
  WHEN current_setting('idle_in_transaction_session_timeout') = '10s' THEN NULL
  WHEN current_setting('idle_in_transaction_session_timeout') = '0'
    OR current_setting('idle_in_transaction_session_timeout')::interval > interval '10 seconds'
    THEN set_config('idle_in_transaction_session_timeout', '10s', true)
END;

ALTER FUNCTION orchestration.bound_idle_time OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.bound_idle_time FROM PUBLIC;
