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
    t.error_code
   FROM ((orchestration.payment_outbox_items i
     LEFT JOIN orchestration.payment_outbox_pending p ON ((p.outbox_id = i.outbox_id)))
     LEFT JOIN orchestration.payment_outbox_attempts t ON (((t.outbox_id = i.outbox_id) AND (t.state = ANY (ARRAY['DISPATCHED'::text, 'FAILED'::text])))));
-- owner: symphony_owner
