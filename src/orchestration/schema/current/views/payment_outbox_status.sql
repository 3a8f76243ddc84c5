CREATE VIEW orchestration.payment_outbox_status WITH (security_barrier=true) AS
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
            WHEN (t.state IS NOT NULL) THEN t.state
            WHEN (p.lease_token IS NOT NULL) THEN 'DISPATCHING'::text
            WHEN (p.outbox_id IS NOT NULL) THEN 'PENDING'::text
            ELSE NULL::text
        END AS state,
    t.outcome,
    COALESCE(t.attempt_no, p.attempt_count) AS attempt_count,
    p.next_attempt_at,
    p.claimed_by,
    p.lease_expires_at,
    t.completed_at,
    t.rail_reference,
    t.error_code,
        CASE
            WHEN (t.state IS NULL) THEN NULL::text
            WHEN (l.source = 'RECONCILIATION'::text) THEN l.outcome
            WHEN (t.state = 'DISPATCHED'::text) THEN 'SENT'::text
            WHEN (l.source = 'WORKER'::text) THEN 'UNKNOWN'::text
            ELSE t.outcome
        END AS known_outcome
   FROM (((orchestration.payment_outbox_items i
     LEFT JOIN orchestration.payment_outbox_pending p ON ((p.outbox_id = i.outbox_id)))
     LEFT JOIN orchestration.payment_outbox_attempts t ON (((t.outbox_id = i.outbox_id) AND (t.state = ANY (ARRAY['DISPATCHED'::text, 'FAILED'::text])))))
     LEFT JOIN LATERAL ( SELECT l_1.source,
            l_1.outcome
           FROM orchestration.payment_outbox_late_results l_1
          WHERE ((l_1.outbox_id = t.outbox_id) AND ((l_1.outcome = 'SENT'::text) OR ((l_1.source = 'RECONCILIATION'::text) AND (l_1.attempt_no = t.attempt_no))))
          ORDER BY l_1.result_no DESC
         LIMIT 1) l ON (true));
-- owner: symphony_owner
