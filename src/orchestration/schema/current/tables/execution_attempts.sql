instruction_id uuid NOT NULL
attempt_no integer NOT NULL
phase text NOT NULL
participant_id text NOT NULL
worker_id text NOT NULL
outcome text
error_code text
error_message text
occurred_at timestamp with time zone NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
