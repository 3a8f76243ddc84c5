CREATE FUNCTION orchestration.complete_instruction(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  RETURN QUERY
  SELECT e.* FROM orchestration.end_instruction(p_id, p_version, 'COMPLETED', NULL) e;
END
$$;

ALTER FUNCTION orchestration.complete_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.complete_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.complete_instruction TO symphony_executor;
