outbox_id uuid NOT NULL
intervention_no integer NOT NULL
action text NOT NULL
attempt_no integer
result_no integer
time_before timestamp with time zone
time_after timestamp with time zone
reason text
acted_by text NOT NULL DEFAULT SESSION_USER
acted_at timestamp with time zone NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
