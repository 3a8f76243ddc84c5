CREATE VIEW orchestration.ingress_attestation_status
WITH (security_barrier = true)
AS
SELECT a.id AS attestation_id,
       a.caller_identity,
       a.chain_seq,
       a.idempotency_key,
       a.policy_version_id,
       a.attested_at,
       a.execution_started OR s.event IS NOT NULL AS execution_started,
       s.occurred_at AS execution_started_at,
       a.execution_completed OR c.event IS NOT NULL AS execution_completed,
       c.occurred_at AS execution_completed_at,
       coalesce(a.terminal_status, c.terminal_status) AS terminal_status
FROM orchestration.ingress_attestations a
LEFT JOIN orchestration.ingress_attestation_events s
  ON s.attestation_id = a.id AND s.event = 'EXECUTION_STARTED'
LEFT JOIN orchestration.ingress_attestation_events c
  ON c.attestation_id = a.id AND c.event = 'EXECUTION_COMPLETED';

ALTER VIEW orchestration.ingress_attestation_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.ingress_attestation_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
