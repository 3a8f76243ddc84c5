CREATE FUNCTION orchestration.open_transaction_attempt(
  p_instruction_id uuid,
  p_worker_id text,
  p_rail_type text
) RETURNS SETOF orchestration.transaction_attempts
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'transaction_attempts', ARRAY['worker_id', 'rail_type'],
    ARRAY[p_worker_id, p_rail_type]
  );
  PERFORM orchestration.lock_attempted_instruction(p_instruction_id);
  -- Repeated if a row that was not inserted by this function has taken the number meanwhile.
  LOOP
    RETURN QUERY
    INSERT INTO orchestration.transaction_attempts
      (instruction_id, attempt_no, phase, worker_id, rail_type)
    SELECT p_instruction_id, coalesce(max(a.attempt_no), 0) + 1, 'OPEN', p_worker_id, p_rail_type
    FROM orchestration.transaction_attempts a
    WHERE a.instruction_id = p_instruction_id
    ON CONFLICT DO NOTHING
    RETURNING *;
    EXIT WHEN FOUND;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.open_transaction_attempt OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.open_transaction_attempt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.open_transaction_attempt TO symphony_executor;
