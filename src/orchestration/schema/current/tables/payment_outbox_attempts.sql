outbox_id uuid NOT NULL
attempt_no integer NOT NULL
phase text NOT NULL
state text NOT NULL
outcome text
requested_state text
requested_error_code text
lease_token uuid NOT NULL
worker_id text NOT NULL
claimed_at timestamp with time zone NOT NULL
completed_at timestamp with time zone
rail_reference text
rail_code text
error_code text
error_message text
latency_ms integer
db_user text NOT NULL DEFAULT SESSION_USER
xact_id bigint NOT NULL DEFAULT ((pg_current_xact_id())::text)::bigint
-- kind: r, persistence: p
-- owner: symphony_owner
