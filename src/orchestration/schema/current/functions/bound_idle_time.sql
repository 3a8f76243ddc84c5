CREATE OR REPLACE FUNCTION orchestration.bound_idle_time()
 RETURNS text
 LANGUAGE sql
RETURN CASE WHEN (current_setting('idle_in_transaction_session_timeout'::text) = '10s'::text) THEN NULL::text WHEN ((current_setting('idle_in_transaction_session_timeout'::text) = '0'::text) OR ((current_setting('idle_in_transaction_session_timeout'::text))::interval > '00:00:10'::interval)) THEN set_config('idle_in_transaction_session_timeout'::text, '10s'::text, true) ELSE NULL::text END;
-- owner: symphony_owner
