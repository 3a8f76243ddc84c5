chain_seq bigint NOT NULL
action text NOT NULL
table_name text NOT NULL
before jsonb
after jsonb NOT NULL
occurred_at timestamp with time zone NOT NULL
db_user text NOT NULL
db_role text NOT NULL
client_addr inet
prev_hash text NOT NULL
record_hash text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
