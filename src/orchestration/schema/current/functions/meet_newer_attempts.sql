CREATE FUNCTION orchestration.meet_newer_attempts(p_log text, p_instruction_id uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Called before an attempt is rejected. Rows that are newer than the snapshot are not visible, but
-- the primary key contains them. If one exists, inserting the row that would come next conflicts
-- with it and raises 40001. Otherwise the caller raises an error, which undoes the insert.
DECLARE
  v_last jsonb;
  v_next jsonb;
BEGIN
  IF current_setting('transaction_isolation') NOT IN ('repeatable read', 'serializable') THEN
    RETURN;
  END IF;
  EXECUTE format(
    'SELECT to_jsonb(a)
    FROM orchestration.%I a
    WHERE a.instruction_id = $1
    ORDER BY a.attempt_no DESC, a.phase = ''CLOSE'' DESC
    LIMIT 1',
    p_log
  ) INTO v_last USING p_instruction_id;
  IF v_last IS NULL THEN
    SELECT jsonb_build_object('instruction_id', i.id, 'participant_id', i.participant_id,
      'worker_id', SESSION_USER, 'rail_type', SESSION_USER, 'attempt_no', 1, 'phase', 'OPEN')
    INTO v_next
    FROM orchestration.instructions i
    WHERE i.id = p_instruction_id;
  ELSIF v_last ->> 'phase' = 'OPEN' THEN
    v_next := v_last || jsonb_build_object('phase', 'CLOSE', 'outcome', 'ABANDONED');
  ELSIF v_last ->> 'outcome' <> 'SUCCEEDED' THEN
    v_next := v_last || jsonb_build_object('attempt_no', (v_last ->> 'attempt_no')::bigint + 1,
      'phase', 'OPEN', 'outcome', NULL, 'error_code', NULL, 'error_message', NULL,
      'rail_reference', NULL);
  END IF;
  IF v_next IS NOT NULL THEN
    EXECUTE format(
      'INSERT INTO orchestration.%1$I
      SELECT r.*
      FROM jsonb_populate_record(NULL::orchestration.%1$I, $1) r
      ON CONFLICT DO NOTHING',
      p_log
    ) USING v_next || jsonb_build_object('occurred_at', clock_timestamp(),
      'db_user', SESSION_USER, 'xact_id', pg_current_xact_id()::text::bigint);
  END IF;
END
$$;

ALTER FUNCTION orchestration.meet_newer_attempts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.meet_newer_attempts FROM PUBLIC;
