attestation_id uuid NOT NULL
event text NOT NULL
caller_identity text NOT NULL
terminal_status text
occurred_at timestamp with time zone NOT NULL
recorded_by text NOT NULL DEFAULT SESSION_USER
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
