CREATE VIEW orchestration.payment_outbox_status
WITH (security_barrier = true)
AS
SELECT i.outbox_id,
       i.instruction_id,
       i.participant_id,
       i.sequence_id,
       i.idempotency_key,
       i.redrive_no,
       i.redrive_of,
       i.rail_type,
       i.payload_hash,
       i.max_attempts,
       i.created_at,
       CASE
         WHEN t.state IS NOT NULL THEN t.state
         WHEN p.lease_token IS NOT NULL THEN 'DISPATCHING'
         WHEN p.outbox_id IS NOT NULL THEN 'PENDING'
       END AS state,
       t.outcome,
       coalesce(t.attempt_no, p.attempt_count) AS attempt_count,
       p.next_attempt_at,
       p.claimed_by,
       p.lease_expires_at,
       t.completed_at,
       t.rail_reference,
       t.error_code,
       CASE
         WHEN t.state IS NULL THEN NULL
         WHEN l.source = 'RECONCILIATION' THEN l.outcome
         WHEN t.state = 'DISPATCHED' THEN 'SENT'
         -- A worker reported SENT after the attempt had failed. The outcome is unknown until
         -- control resolves it.
         WHEN l.source = 'WORKER' THEN 'UNKNOWN'
         ELSE t.outcome
       END AS known_outcome
FROM orchestration.payment_outbox_items i
LEFT JOIN orchestration.payment_outbox_pending p ON p.outbox_id = i.outbox_id
LEFT JOIN orchestration.payment_outbox_attempts t
  ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
LEFT JOIN LATERAL (
  -- The newest result that counts: a reconciliation of the last attempt, or SENT for any attempt.
  SELECT l.source, l.outcome
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = t.outbox_id
    AND (l.outcome = 'SENT' OR l.source = 'RECONCILIATION' AND l.attempt_no = t.attempt_no)
  ORDER BY l.result_no DESC
  LIMIT 1
) l ON true;

ALTER VIEW orchestration.payment_outbox_status OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_status
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
