cert_fingerprint_sha256 text NOT NULL
revocation_no integer NOT NULL
revoked_at timestamp with time zone NOT NULL
recorded_at timestamp with time zone NOT NULL
expires_at timestamp with time zone
reason_code text NOT NULL
revoked_by text NOT NULL DEFAULT SESSION_USER
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
