CREATE FUNCTION orchestration.verify_outbox()
RETURNS TABLE (finding text, outbox_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  -- The function is long because each finding is a query of its own. Together in one statement, all
  -- of them read the same snapshot.
  SELECT 'LOST: the item has neither a pending row nor a terminal attempt',
         i.outbox_id, i.participant_id, '{}'::jsonb
  FROM orchestration.payment_outbox_items i
  WHERE NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = i.outbox_id)
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts t
      WHERE t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED'))
  UNION ALL
  SELECT 'TWICE: the item has a pending row and a terminal attempt', p.outbox_id, p.participant_id,
         jsonb_build_object('state', t.state)
  FROM orchestration.payment_outbox_pending p
  JOIN orchestration.payment_outbox_attempts t
    ON t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
  UNION ALL
  SELECT 'STRANGER: the pending row differs from its item', p.outbox_id, p.participant_id, '{}'
  FROM orchestration.payment_outbox_pending p
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i
    WHERE (i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.rail_type)
      = (p.outbox_id, p.instruction_id, p.participant_id, p.sequence_id, p.rail_type))
  UNION ALL
  SELECT 'UNAUTHORIZED: the item is pending, but its instruction is not AUTHORIZED or EXECUTING',
         p.outbox_id, p.participant_id,
         jsonb_build_object('instruction_id', p.instruction_id)
  FROM orchestration.payment_outbox_pending p
  WHERE NOT EXISTS (
    SELECT FROM orchestration.instructions n
    WHERE n.id = p.instruction_id AND n.participant_id = p.participant_id AND n.open)
  UNION ALL
  SELECT 'ENDED: the state of the instruction contradicts the outcomes of its items',
         NULL, n.participant_id,
         jsonb_build_object('instruction_id', n.id, 'state', n.state, 'sent', t.sent,
           'unknown', t.unknown)
  FROM orchestration.instructions n
  CROSS JOIN LATERAL (
    -- Only results that were known when the instruction ended count here. A later result is a
    -- contradiction, which payment_outbox_contradictions shows.
    SELECT count(*) FILTER (WHERE t.state = 'DISPATCHED'
             OR l.source = 'RECONCILIATION' AND l.outcome = 'SENT') AS sent,
           count(*) FILTER (WHERE t.state = 'FAILED'
             AND (l.source = 'WORKER' OR l.source IS NULL AND t.outcome = 'UNKNOWN')) AS unknown
    FROM orchestration.payment_outbox_items i
    JOIN orchestration.payment_outbox_attempts t
      ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
    LEFT JOIN LATERAL (
      SELECT l.source, l.outcome
      FROM orchestration.payment_outbox_late_results l
      WHERE l.outbox_id = t.outbox_id
        AND l.instruction_version < n.version
        AND (l.outcome = 'SENT' OR l.source = 'RECONCILIATION' AND l.attempt_no = t.attempt_no)
      ORDER BY l.result_no DESC
      LIMIT 1
    ) l ON true
    WHERE i.instruction_id = n.id
  ) t
  WHERE n.state = 'COMPLETED' AND t.sent = 0
    OR n.state = 'FAILED' AND t.sent + t.unknown > 0
  UNION ALL
  SELECT 'UNRESOLVED: unresolved is not the number of items whose outcome is UNKNOWN', NULL,
         n.participant_id,
         jsonb_build_object('instruction_id', n.id, 'unresolved', n.unresolved,
           'unknown', coalesce(u.items, 0))
  FROM orchestration.instructions n
  LEFT JOIN (
    SELECT s.instruction_id, count(*) AS items
    FROM orchestration.payment_outbox_status s
    WHERE s.known_outcome = 'UNKNOWN'
    GROUP BY s.instruction_id
  ) u ON u.instruction_id = n.id
  WHERE n.unresolved <> coalesce(u.items, 0)
  UNION ALL
  SELECT 'LATE: the late result has no attempt, or is a worker''s under a different lease',
         l.outbox_id, NULL,
         jsonb_build_object('result_no', l.result_no, 'attempt_no', l.attempt_no)
  FROM orchestration.payment_outbox_late_results l
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts o
    WHERE (o.outbox_id, o.attempt_no, o.phase) = (l.outbox_id, l.attempt_no, 'OPEN')
      AND (l.source = 'RECONCILIATION' OR l.lease_token = o.lease_token))
  UNION ALL
  SELECT 'INTERVENTION: the item of the intervention does not exist', v.outbox_id, NULL,
         jsonb_build_object('intervention_no', v.intervention_no, 'action', v.action)
  FROM orchestration.payment_outbox_interventions v
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = v.outbox_id)
  UNION ALL
  SELECT 'CANCELLED: no intervention records who cancelled the item', a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no)
  FROM orchestration.payment_outbox_attempts a
  WHERE a.state = 'FAILED'
    AND a.error_code = 'CANCELLED'
    AND a.requested_state IS NULL
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_interventions v
      WHERE v.outbox_id = a.outbox_id AND v.action = 'CANCEL')
  UNION ALL
  SELECT 'ORPHAN: the item of the attempt does not exist', a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no, 'phase', a.phase)
  FROM orchestration.payment_outbox_attempts a
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = a.outbox_id)
  UNION ALL
  SELECT 'ATTEMPTS: the openings and closings of the item do not match', a.outbox_id, NULL,
         jsonb_build_object('openings', a.openings, 'closings', a.closings,
           'attempt_count', a.attempt_count)
  FROM (
    SELECT coalesce(a.outbox_id, p.outbox_id) AS outbox_id,
           coalesce(a.openings, 0) AS openings,
           coalesce(a.closings, 0) AS closings,
           coalesce(a.last, 0) AS last,
           p.attempt_count,
           (p.lease_token IS NOT NULL)::integer AS leased
    FROM orchestration.payment_outbox_pending p
    FULL JOIN (
      SELECT a.outbox_id,
             count(*) FILTER (WHERE a.phase = 'OPEN') AS openings,
             count(*) FILTER (WHERE a.phase = 'CLOSE') AS closings,
             max(a.attempt_no) AS last
      FROM orchestration.payment_outbox_attempts a
      GROUP BY a.outbox_id
    ) a ON a.outbox_id = p.outbox_id
  ) a
  WHERE a.openings <> a.last
    OR a.closings <> a.last - a.leased
    OR coalesce(a.attempt_count, a.last) <> a.last
  UNION ALL
  SELECT 'ATTEMPT: the attempt is past max_attempts, after the terminal one, or closed under a'
           ' different lease',
         a.outbox_id, NULL,
         jsonb_build_object('attempt_no', a.attempt_no, 'phase', a.phase)
  FROM orchestration.payment_outbox_attempts a
  JOIN orchestration.payment_outbox_items i ON i.outbox_id = a.outbox_id
  LEFT JOIN orchestration.payment_outbox_attempts o
    ON (o.outbox_id, o.attempt_no, o.phase) = (a.outbox_id, a.attempt_no, 'OPEN')
  LEFT JOIN orchestration.payment_outbox_attempts t
    ON t.outbox_id = a.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
  WHERE a.attempt_no > least(i.max_attempts, t.attempt_no)
    OR (a.lease_token, a.worker_id, a.claimed_at) <> (o.lease_token, o.worker_id, o.claimed_at)
  UNION ALL
  SELECT 'REDRIVE: the redriven item is missing, differs, or did not end REJECTED or NOT_SENT',
         i.outbox_id, i.participant_id, jsonb_build_object('redrive_of', i.redrive_of)
  FROM orchestration.payment_outbox_items i
  WHERE i.redrive_no > 0
    AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_items f
      JOIN orchestration.payment_outbox_attempts t ON t.outbox_id = f.outbox_id
      WHERE f.outbox_id = i.redrive_of
        AND (f.instruction_id, f.participant_id, f.idempotency_key, f.redrive_no, f.rail_type,
            f.payload_hash, f.max_attempts)
          = (i.instruction_id, i.participant_id, i.idempotency_key, i.redrive_no - 1, i.rail_type,
            i.payload_hash, i.max_attempts)
        AND t.state = 'FAILED'
        AND (t.outcome IN ('REJECTED', 'NOT_SENT')
          OR EXISTS (
            SELECT FROM orchestration.payment_outbox_late_results l
            WHERE l.outbox_id = f.outbox_id
              AND l.source = 'RECONCILIATION'
              AND l.outcome IN ('REJECTED', 'NOT_SENT'))))
  UNION ALL
  SELECT 'SPENT: the item waits for an attempt, but has used all of them',
         p.outbox_id, p.participant_id,
         jsonb_build_object('attempt_count', p.attempt_count, 'max_attempts', i.max_attempts)
  FROM orchestration.payment_outbox_pending p
  JOIN orchestration.payment_outbox_items i ON i.outbox_id = p.outbox_id
  WHERE p.lease_token IS NULL AND p.attempt_count >= i.max_attempts
  UNION ALL
  SELECT 'SEQUENCE: sequence_id has a gap, or next_sequence_id is not the last one plus 1',
         NULL, s.participant_id,
         jsonb_build_object('next_sequence_id', s.next_sequence_id, 'items', s.items,
           'last', s.last)
  FROM (
    SELECT coalesce(s.participant_id, i.participant_id) AS participant_id,
           s.next_sequence_id, coalesce(i.items, 0) AS items, coalesce(i.last, 0) AS last
    FROM orchestration.participant_outbox_sequences s
    FULL JOIN (
      SELECT i.participant_id, count(*) AS items, max(i.sequence_id) AS last
      FROM orchestration.payment_outbox_items i
      GROUP BY i.participant_id
    ) i ON i.participant_id = s.participant_id
  ) s
  WHERE s.items <> s.last OR s.next_sequence_id IS DISTINCT FROM s.last + 1
$$;

ALTER FUNCTION orchestration.verify_outbox OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_outbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_outbox TO symphony_control, symphony_auditor;
