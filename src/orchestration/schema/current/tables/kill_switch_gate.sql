singleton boolean NOT NULL DEFAULT true
changes bigint NOT NULL DEFAULT 0
changed_at timestamp with time zone
-- kind: r, persistence: p
-- owner: symphony_owner
