CREATE FUNCTION orchestration.start_execution(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
BEGIN
  PERFORM orchestration.share_gate('kill_switch_gate');
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, 'EXECUTING', NULL) l;
  IF v_instruction.replayed THEN
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i SET state = 'EXECUTING' WHERE i.id = p_id
  RETURNING i.*, false;
END
$$;

ALTER FUNCTION orchestration.start_execution OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.start_execution FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.start_execution TO symphony_executor;
