singleton boolean NOT NULL DEFAULT true
revision text NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
