-- LATERAL with OFFSET 0 keeps these index look-ups. A plain join would read the whole of
-- payment_outbox_status, because conditions are not pushed down into a security_barrier view.
CREATE VIEW orchestration.payment_outbox_unresolved
WITH (security_invoker = true)
AS
SELECT s.outbox_id,
       s.instruction_id,
       s.participant_id,
       s.idempotency_key,
       s.redrive_no,
       s.rail_type,
       n.end_to_end_id,
       n.amount_minor,
       n.currency,
       n.state AS instruction_state,
       s.attempt_count AS attempt_no,
       s.completed_at AS since,
       s.error_code,
       w.outcome AS reported_outcome,
       coalesce(w.rail_reference, s.rail_reference) AS rail_reference
FROM orchestration.instruction_status n
CROSS JOIN LATERAL (
  SELECT s.*
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = n.id AND s.known_outcome = 'UNKNOWN'
  OFFSET 0
) s
LEFT JOIN LATERAL (
  SELECT l.outcome, l.rail_reference
  FROM orchestration.payment_outbox_late_results l
  WHERE l.outbox_id = s.outbox_id AND l.source = 'WORKER'
  ORDER BY l.result_no DESC
  LIMIT 1
) w ON true
WHERE n.unresolved > 0;

ALTER VIEW orchestration.payment_outbox_unresolved OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_unresolved
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
