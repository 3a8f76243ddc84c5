CREATE VIEW orchestration.instruction_status WITH (security_barrier=true) AS
 SELECT id,
    participant_id,
    idempotency_key,
    instruction_type,
    end_to_end_id,
    uetr,
    value_date,
    amount_minor,
    currency,
    payload_hash,
    attestation_id,
    policy_version_id,
    state,
    unresolved,
    reason,
    version,
    created_at,
    updated_at,
    completed_at,
    db_user
   FROM orchestration.instructions i;
-- owner: symphony_owner
