id uuid NOT NULL
participant_id text NOT NULL
idempotency_key text NOT NULL
instruction_type text NOT NULL
end_to_end_id text NOT NULL
uetr uuid
value_date date
amount_minor bigint NOT NULL
currency text NOT NULL
debtor_account text NOT NULL
creditor_account text NOT NULL
payload jsonb NOT NULL
payload_salt bytea NOT NULL DEFAULT uuid_send(gen_random_uuid())
payload_hash text NOT NULL
attestation_id uuid NOT NULL
policy_version_id text NOT NULL
state text NOT NULL DEFAULT 'RECEIVED'::text
open boolean NOT NULL GENERATED ALWAYS AS ((state = ANY (ARRAY['AUTHORIZED'::text, 'EXECUTING'::text]))) STORED
unresolved integer NOT NULL DEFAULT 0
reason text
version integer NOT NULL DEFAULT 1
created_at timestamp with time zone NOT NULL
updated_at timestamp with time zone NOT NULL
completed_at timestamp with time zone
db_user text NOT NULL
xact_id bigint NOT NULL
-- kind: r, persistence: p
-- owner: symphony_owner
