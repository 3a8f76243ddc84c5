outbox_id uuid NOT NULL
result_no integer NOT NULL
attempt_no integer NOT NULL
source text NOT NULL
outcome text NOT NULL
rail_reference text
reason text
lease_token uuid
recorded_by text NOT NULL DEFAULT SESSION_USER
recorded_at timestamp with time zone NOT NULL
instruction_version integer NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
