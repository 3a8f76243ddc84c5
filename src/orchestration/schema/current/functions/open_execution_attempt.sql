CREATE FUNCTION orchestration.open_execution_attempt(p_instruction_id uuid, p_worker_id text)
RETURNS SETOF orchestration.execution_attempts
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'execution_attempts', ARRAY['worker_id'],
    ARRAY[p_worker_id]
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  -- Repeated if a row that was not inserted by this function has taken the number meanwhile.
  LOOP
    RETURN QUERY
    INSERT INTO orchestration.execution_attempts (instruction_id, attempt_no, phase, worker_id)
    SELECT p_instruction_id, coalesce(max(a.attempt_no), 0) + 1, 'OPEN', p_worker_id
    FROM orchestration.execution_attempts a
    WHERE a.instruction_id = p_instruction_id
    ON CONFLICT DO NOTHING
    RETURNING *;
    EXIT WHEN FOUND;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.open_execution_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.open_execution_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.open_execution_attempt TO symphony_executor;
