-- An element of complete_outbox_attempt.
CREATE TYPE orchestration.outbox_completion AS (
  outbox_id uuid,
  lease_token uuid,
  worker_id text,
  state text,
  outcome text,
  rail_reference text,
  rail_code text,
  error_code text,
  error_message text,
  retry_in interval,
  latency_ms integer
);

ALTER TYPE orchestration.outbox_completion OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.outbox_completion FROM PUBLIC;
