instruction_id uuid NOT NULL
version integer NOT NULL
participant_id text NOT NULL
from_state text
to_state text NOT NULL
reason text
occurred_at timestamp with time zone NOT NULL
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
