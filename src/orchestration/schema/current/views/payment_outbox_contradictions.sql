CREATE VIEW orchestration.payment_outbox_contradictions
WITH (security_invoker = true)
AS
SELECT l.outbox_id,
       l.result_no,
       s.instruction_id,
       s.participant_id,
       s.idempotency_key,
       s.redrive_no,
       s.rail_type,
       n.end_to_end_id,
       n.amount_minor,
       n.currency,
       n.state AS instruction_state,
       l.attempt_no,
       l.source,
       l.outcome,
       l.rail_reference,
       l.recorded_by,
       l.recorded_at AS since,
       c.contradicts
FROM orchestration.payment_outbox_late_results l
CROSS JOIN LATERAL (
  SELECT s.*
  FROM orchestration.payment_outbox_status s
  WHERE s.outbox_id = l.outbox_id
  OFFSET 0
) s
CROSS JOIN LATERAL (
  SELECT n.*
  FROM orchestration.instruction_status n
  WHERE n.id = s.instruction_id
  OFFSET 0
) n
CROSS JOIN LATERAL (
  SELECT CASE
    WHEN EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts a
      WHERE a.outbox_id = l.outbox_id
        AND a.phase = 'CLOSE'
        AND CASE l.outcome
          WHEN 'SENT' THEN a.outcome IN ('REJECTED', 'NOT_SENT')
            AND (a.attempt_no = l.attempt_no OR a.state = 'FAILED')
          ELSE a.state = 'DISPATCHED' AND a.attempt_no = l.attempt_no
        END
    ) THEN 'ATTEMPT'
    WHEN EXISTS (
      SELECT FROM orchestration.payment_outbox_late_results e
      WHERE e.outbox_id = l.outbox_id
        AND e.result_no < l.result_no
        AND (e.outcome = 'SENT') <> (l.outcome = 'SENT')
        AND (e.attempt_no = l.attempt_no
          OR l.outcome = 'SENT' AND e.source = 'RECONCILIATION'
          OR e.outcome = 'SENT' AND l.source = 'RECONCILIATION')
    ) THEN 'LATE_RESULT'
    WHEN l.outcome = 'SENT' AND EXISTS (
      SELECT FROM orchestration.payment_outbox_status o
      WHERE o.instruction_id = s.instruction_id
        AND o.idempotency_key = s.idempotency_key
        AND (o.redrive_no > s.redrive_no
          OR o.redrive_no < s.redrive_no AND o.known_outcome = 'SENT')
    ) THEN 'REDRIVE'
    WHEN l.outcome = 'SENT' AND n.state = 'FAILED' THEN 'INSTRUCTION'
  END AS contradicts
) c
WHERE c.contradicts IS NOT NULL
  AND NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_interventions v
    WHERE v.outbox_id = l.outbox_id
      AND v.result_no = l.result_no
      AND v.action = 'CLOSE_CONTRADICTION'
  );

ALTER VIEW orchestration.payment_outbox_contradictions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_contradictions
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
