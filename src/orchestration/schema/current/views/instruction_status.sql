CREATE VIEW orchestration.instruction_status
WITH (security_barrier = true)
AS
SELECT i.id,
       i.participant_id,
       i.idempotency_key,
       i.instruction_type,
       i.end_to_end_id,
       i.uetr,
       i.value_date,
       i.amount_minor,
       i.currency,
       i.payload_hash,
       i.attestation_id,
       i.policy_version_id,
       i.state,
       i.unresolved,
       i.reason,
       i.version,
       i.created_at,
       i.updated_at,
       i.completed_at,
       i.db_user
FROM orchestration.instructions i;

ALTER VIEW orchestration.instruction_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.instruction_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
