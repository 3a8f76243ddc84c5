CREATE FUNCTION orchestration.fail_instruction(p_id uuid, p_version integer, p_reason text)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'FAILED', p_reason) e;
END
$$;

ALTER FUNCTION orchestration.fail_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fail_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.fail_instruction TO symphony_executor;
