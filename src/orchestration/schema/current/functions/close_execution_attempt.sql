CREATE FUNCTION orchestration.close_execution_attempt(
  p_instruction_id uuid,
  p_attempt_no integer,
  p_outcome text,
  p_error_code text DEFAULT NULL,
  p_error_message text DEFAULT NULL
) RETURNS SETOF orchestration.execution_attempt_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_recorded orchestration.execution_attempt_result;
  v_replayed boolean;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['outcome', 'error_code'],
    ARRAY[p_outcome, p_error_code]
  );
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['error_message'], ARRAY[p_error_message], 4000
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  IF NOT EXISTS (
    SELECT FROM orchestration.execution_attempts a
    WHERE a.instruction_id = p_instruction_id
      AND a.attempt_no = p_attempt_no
      AND a.phase = 'OPEN'
  ) THEN
    PERFORM orchestration.meet_newer_attempts('execution_attempts', p_instruction_id);
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the attempt was not opened', 'execution_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no),
      'Check attempt_no, or use open_execution_attempt first.', 'attempt_no'
    );
  END IF;
  INSERT INTO orchestration.execution_attempts
    (instruction_id, attempt_no, phase, outcome, error_code, error_message)
  VALUES (p_instruction_id, p_attempt_no, 'CLOSE', p_outcome, p_error_code, p_error_message)
  ON CONFLICT DO NOTHING;
  v_replayed := NOT FOUND;
  SELECT a.*, v_replayed INTO v_recorded
  FROM orchestration.execution_attempts a
  WHERE a.instruction_id = p_instruction_id
    AND a.attempt_no = p_attempt_no
    AND a.phase = 'CLOSE';
  IF (v_recorded.outcome, v_recorded.error_code, v_recorded.error_message)
    IS DISTINCT FROM (p_outcome, p_error_code, p_error_message) THEN
    PERFORM orchestration.raise_invariant(
      'INV-APP-002', 'P7401', 'the attempt was already closed with a different outcome',
      'execution_attempts',
      jsonb_build_object('instruction_id', p_instruction_id, 'attempt_no', p_attempt_no,
        'outcome', v_recorded.outcome),
      'Do not close it again. Record what happened later in a new attempt.', 'outcome'
    );
  END IF;
  RETURN NEXT v_recorded;
END
$$;

ALTER FUNCTION orchestration.close_execution_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.close_execution_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.close_execution_attempt TO symphony_executor;
