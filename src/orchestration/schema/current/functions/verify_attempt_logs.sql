CREATE FUNCTION orchestration.verify_attempt_logs()
RETURNS TABLE (finding text, instruction_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  WITH attempts AS (
    SELECT 'execution_attempts' AS log, e.instruction_id, e.attempt_no, e.phase, e.participant_id,
           e.worker_id, NULL AS rail_type, e.outcome
    FROM orchestration.execution_attempts e
    UNION ALL
    SELECT 'transaction_attempts', t.instruction_id, t.attempt_no, t.phase, t.participant_id,
           t.worker_id, t.rail_type, t.outcome
    FROM orchestration.transaction_attempts t
  ), found AS (
    SELECT 'ORPHAN: the instruction of the attempt does not exist' AS finding, a.*
    FROM attempts a
    WHERE NOT EXISTS (
      SELECT FROM orchestration.instructions i
      WHERE (i.id, i.participant_id) = (a.instruction_id, a.participant_id))
    UNION ALL
    SELECT 'CLOSE: the attempt was closed but not opened, or by a different worker or rail', c.*
    FROM attempts c
    LEFT JOIN attempts o
      ON (o.log, o.instruction_id, o.attempt_no, o.phase)
        = (c.log, c.instruction_id, c.attempt_no, 'OPEN')
    WHERE c.phase = 'CLOSE'
      AND (o.participant_id, o.worker_id, o.rail_type)
        IS DISTINCT FROM (c.participant_id, c.worker_id, c.rail_type)
    UNION ALL
    SELECT 'ORDER: the attempt was opened, but the previous one is not closed or SUCCEEDED', o.*
    FROM attempts o
    LEFT JOIN attempts c
      ON (c.log, c.instruction_id, c.attempt_no, c.phase)
        = (o.log, o.instruction_id, o.attempt_no - 1, 'CLOSE')
    WHERE o.phase = 'OPEN' AND o.attempt_no > 1 AND coalesce(c.outcome, 'SUCCEEDED') = 'SUCCEEDED'
  )
  SELECT f.finding, f.instruction_id, f.participant_id,
         jsonb_build_object('log', f.log, 'attempt_no', f.attempt_no, 'phase', f.phase)
  FROM found f
  ORDER BY f.finding, f.log, f.instruction_id, f.attempt_no
$$;

ALTER FUNCTION orchestration.verify_attempt_logs OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_attempt_logs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_attempt_logs TO symphony_control, symphony_auditor;
