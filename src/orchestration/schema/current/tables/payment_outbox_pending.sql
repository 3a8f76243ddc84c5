outbox_id uuid NOT NULL
instruction_id uuid NOT NULL
participant_id text NOT NULL
sequence_id bigint NOT NULL
rail_type text NOT NULL
attempt_count integer NOT NULL DEFAULT 0
next_attempt_at timestamp with time zone NOT NULL DEFAULT clock_timestamp()
claimed_by text
lease_token uuid
lease_expires_at timestamp with time zone
open boolean NOT NULL GENERATED ALWAYS AS (true) STORED
-- kind: r, persistence: p
-- owner: symphony_owner
-- options: fillfactor=40
