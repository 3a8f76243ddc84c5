-- Limits, for this transaction, how long a client that has stopped responding can hold its locks.
-- idle_in_transaction_session_timeout ends the session of a client that sends nothing.
-- tcp_user_timeout, in milliseconds, ends the session of a client that does not read its reply: a
-- backend that waits to send is not idle, and statement_timeout does not end it. A Unix socket has
-- no such limit and always shows 0.
-- PostgreSQL inlines a SQL-standard body without a SET clause. The callers run in every gated
-- write.
CREATE FUNCTION orchestration.bound_idle_time() RETURNS text
LANGUAGE sql VOLATILE
RETURN concat(
  CASE
    WHEN current_setting('idle_in_transaction_session_timeout') = '10s' THEN NULL
    WHEN current_setting('idle_in_transaction_session_timeout') = '0'
      OR current_setting('idle_in_transaction_session_timeout')::interval > interval '10 seconds'
      THEN set_config('idle_in_transaction_session_timeout', '10s', true)
  END,
  CASE
    WHEN current_setting('tcp_user_timeout')::integer NOT BETWEEN 1 AND 10000
      THEN set_config('tcp_user_timeout', '10000', true)
  END
);

ALTER FUNCTION orchestration.bound_idle_time OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.bound_idle_time FROM PUBLIC;
