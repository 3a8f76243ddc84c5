participant_id text NOT NULL
next_sequence_id bigint NOT NULL DEFAULT 1
-- kind: r, persistence: p
-- owner: symphony_owner
-- options: fillfactor=50
