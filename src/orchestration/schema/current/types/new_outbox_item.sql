-- An element of enqueue_payment_outbox.
CREATE TYPE orchestration.new_outbox_item AS (
  instruction_id uuid,
  participant_id text,
  idempotency_key text,
  rail_type text,
  payload jsonb,
  due_at timestamptz,
  max_attempts integer,
  context jsonb
);

ALTER TYPE orchestration.new_outbox_item OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_outbox_item FROM PUBLIC;
