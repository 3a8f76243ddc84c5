singleton boolean NOT NULL DEFAULT true
chain_seq bigint NOT NULL DEFAULT 0
record_hash text NOT NULL DEFAULT ''::text
-- kind: r, persistence: p
-- owner: symphony_owner
