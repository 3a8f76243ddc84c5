CREATE VIEW orchestration.payment_outbox_unresolved WITH (security_invoker=true) AS
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
    COALESCE(w.rail_reference, s.rail_reference) AS rail_reference
   FROM ((orchestration.instruction_status n
     CROSS JOIN LATERAL ( SELECT s_1.outbox_id,
            s_1.instruction_id,
            s_1.participant_id,
            s_1.sequence_id,
            s_1.idempotency_key,
            s_1.redrive_no,
            s_1.redrive_of,
            s_1.rail_type,
            s_1.payload_hash,
            s_1.max_attempts,
            s_1.created_at,
            s_1.state,
            s_1.outcome,
            s_1.attempt_count,
            s_1.next_attempt_at,
            s_1.claimed_by,
            s_1.lease_expires_at,
            s_1.completed_at,
            s_1.rail_reference,
            s_1.error_code,
            s_1.known_outcome
           FROM orchestration.payment_outbox_status s_1
          WHERE ((s_1.instruction_id = n.id) AND (s_1.known_outcome = 'UNKNOWN'::text))
         OFFSET 0) s)
     LEFT JOIN LATERAL ( SELECT l.outcome,
            l.rail_reference
           FROM orchestration.payment_outbox_late_results l
          WHERE ((l.outbox_id = s.outbox_id) AND (l.source = 'WORKER'::text))
          ORDER BY l.result_no DESC
         LIMIT 1) w ON (true))
  WHERE (n.unresolved > 0);
-- owner: symphony_owner
