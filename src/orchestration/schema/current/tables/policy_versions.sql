id text NOT NULL
description text NOT NULL
checksum text NOT NULL
status text NOT NULL DEFAULT 'ACTIVE'::text
activated_at timestamp with time zone NOT NULL
grace_expires_at timestamp with time zone
retired_at timestamp with time zone
retired_db_user text
created_at timestamp with time zone NOT NULL
created_by text NOT NULL DEFAULT SESSION_USER
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
