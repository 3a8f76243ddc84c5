-- An element of receive_instruction.
CREATE TYPE orchestration.new_instruction AS (
  participant_id text,
  idempotency_key text,
  instruction_type text,
  end_to_end_id text,
  uetr uuid,
  value_date date,
  amount_minor bigint,
  currency text,
  debtor_account text,
  creditor_account text,
  payload jsonb,
  attestation_id uuid,
  policy_version_id text
);

ALTER TYPE orchestration.new_instruction OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_instruction FROM PUBLIC;
