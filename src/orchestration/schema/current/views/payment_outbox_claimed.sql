-- claim_outbox_batch returns its rows. OFFSET 0 stops the planner from flattening the look-ups into
-- a join whose plan, cached on an empty table, would stay wrong for the session.
CREATE VIEW orchestration.payment_outbox_claimed
WITH (security_invoker = true)
AS
SELECT p.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
       i.redrive_no, i.rail_type, i.payload, i.payload_hash, p.attempt_count AS attempt_no,
       i.max_attempts, i.context, p.claimed_by AS worker_id, p.lease_token, p.lease_expires_at,
       o.claimed_at
FROM orchestration.payment_outbox_pending p
CROSS JOIN LATERAL (
  SELECT i.*
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p.outbox_id
  OFFSET 0
) i
CROSS JOIN LATERAL (
  SELECT o.claimed_at
  FROM orchestration.payment_outbox_attempts o
  WHERE o.outbox_id = p.outbox_id
    AND o.attempt_no = p.attempt_count
    AND o.phase = 'OPEN'
    AND o.lease_token = p.lease_token
  OFFSET 0
) o
WHERE p.lease_token IS NOT NULL;

ALTER VIEW orchestration.payment_outbox_claimed OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_claimed TO symphony_executor;
