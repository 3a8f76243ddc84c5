id uuid NOT NULL
caller_identity text NOT NULL
chain_seq bigint NOT NULL
idempotency_key text NOT NULL
payload_hash text NOT NULL
signature_hash text
client_cert_fingerprint_sha256 text
token_hash text
policy_version_id text NOT NULL
execution_started boolean NOT NULL DEFAULT false
execution_completed boolean NOT NULL DEFAULT false
terminal_status text
attested_at timestamp with time zone NOT NULL
prev_hash text NOT NULL
record_hash text NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
