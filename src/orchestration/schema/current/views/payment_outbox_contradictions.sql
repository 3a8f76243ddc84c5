CREATE VIEW orchestration.payment_outbox_contradictions WITH (security_invoker=true) AS
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
   FROM (((orchestration.payment_outbox_late_results l
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
          WHERE (s_1.outbox_id = l.outbox_id)
         OFFSET 0) s)
     CROSS JOIN LATERAL ( SELECT n_1.id,
            n_1.participant_id,
            n_1.idempotency_key,
            n_1.instruction_type,
            n_1.end_to_end_id,
            n_1.uetr,
            n_1.value_date,
            n_1.amount_minor,
            n_1.currency,
            n_1.payload_hash,
            n_1.attestation_id,
            n_1.policy_version_id,
            n_1.state,
            n_1.unresolved,
            n_1.reason,
            n_1.version,
            n_1.created_at,
            n_1.updated_at,
            n_1.completed_at,
            n_1.db_user
           FROM orchestration.instruction_status n_1
          WHERE (n_1.id = s.instruction_id)
         OFFSET 0) n)
     CROSS JOIN LATERAL ( SELECT
                CASE
                    WHEN (EXISTS ( SELECT
                       FROM orchestration.payment_outbox_attempts a
                      WHERE ((a.outbox_id = l.outbox_id) AND (a.phase = 'CLOSE'::text) AND
                            CASE l.outcome
                                WHEN 'SENT'::text THEN ((a.outcome = ANY (ARRAY['REJECTED'::text, 'NOT_SENT'::text])) AND ((a.attempt_no = l.attempt_no) OR (a.state = 'FAILED'::text)))
                                ELSE ((a.state = 'DISPATCHED'::text) AND (a.attempt_no = l.attempt_no))
                            END))) THEN 'ATTEMPT'::text
                    WHEN (EXISTS ( SELECT
                       FROM orchestration.payment_outbox_late_results e
                      WHERE ((e.outbox_id = l.outbox_id) AND (e.result_no < l.result_no) AND ((e.outcome = 'SENT'::text) <> (l.outcome = 'SENT'::text)) AND ((e.attempt_no = l.attempt_no) OR ((l.outcome = 'SENT'::text) AND (e.source = 'RECONCILIATION'::text)) OR ((e.outcome = 'SENT'::text) AND (l.source = 'RECONCILIATION'::text)))))) THEN 'LATE_RESULT'::text
                    WHEN ((l.outcome = 'SENT'::text) AND (EXISTS ( SELECT
                       FROM orchestration.payment_outbox_status o
                      WHERE ((o.instruction_id = s.instruction_id) AND (o.idempotency_key = s.idempotency_key) AND ((o.redrive_no > s.redrive_no) OR ((o.redrive_no < s.redrive_no) AND (o.known_outcome = 'SENT'::text))))))) THEN 'REDRIVE'::text
                    WHEN ((l.outcome = 'SENT'::text) AND (n.state = 'FAILED'::text)) THEN 'INSTRUCTION'::text
                    ELSE NULL::text
                END AS contradicts) c)
  WHERE ((c.contradicts IS NOT NULL) AND (NOT (EXISTS ( SELECT
           FROM orchestration.payment_outbox_interventions v
          WHERE ((v.outbox_id = l.outbox_id) AND (v.result_no = l.result_no) AND (v.action = 'CLOSE_CONTRADICTION'::text))))));
-- owner: symphony_owner
