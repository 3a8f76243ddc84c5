outbox_id uuid NOT NULL
instruction_id uuid NOT NULL
participant_id text NOT NULL
sequence_id bigint NOT NULL
idempotency_key text NOT NULL
redrive_no integer NOT NULL DEFAULT 0
redrive_of uuid
rail_type text NOT NULL
payload jsonb NOT NULL
payload_salt bytea NOT NULL DEFAULT uuid_send(gen_random_uuid())
payload_hash text NOT NULL
max_attempts integer NOT NULL DEFAULT 20
context jsonb
created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp()
db_user text NOT NULL DEFAULT SESSION_USER
xact_id bigint NOT NULL DEFAULT ((pg_current_xact_id())::text)::bigint
-- kind: r, persistence: p
-- owner: symphony_owner
