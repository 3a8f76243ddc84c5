singleton boolean NOT NULL DEFAULT true
revision text NOT NULL
changes bigint NOT NULL DEFAULT 0
-- kind: r, persistence: p
-- owner: symphony_owner
