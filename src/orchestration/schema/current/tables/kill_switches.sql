event_no bigint NOT NULL
scope text NOT NULL
target text
action text NOT NULL
reason text NOT NULL
key text
actor text NOT NULL DEFAULT SESSION_USER
occurred_at timestamp with time zone NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
