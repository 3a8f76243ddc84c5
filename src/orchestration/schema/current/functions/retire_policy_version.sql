CREATE FUNCTION orchestration.retire_policy_version(p_id text)
RETURNS SETOF orchestration.policy_version_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
  v_status text;
  v_retired_db_user text;
BEGIN
  PERFORM orchestration.refuse_long_texts('policy_versions', ARRAY['id'], ARRAY[p_id]);
  PERFORM orchestration.lock_gate('policy_gate');
  SELECT p.status, p.retired_db_user
  INTO v_status, v_retired_db_user
  FROM orchestration.policy_versions p
  WHERE p.id = p_id;
  IF v_status IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105',
      format('policy version %s does not exist', coalesce(p_id, 'null')), 'policy_versions',
      jsonb_build_object('id', p_id), 'Pass an id that policy_versions contains.', 'id'
    );
  END IF;
  IF v_status = 'ACTIVE' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-007', 'P7103', 'no ACTIVE policy version would remain', 'policy_versions',
      jsonb_build_object('id', p_id),
      'Call rotate_policy_version to replace the ACTIVE version.', 'status'
    );
  END IF;
  IF v_status = 'RETIRED' AND v_retired_db_user = SESSION_USER THEN
    -- The same login repeats its call.
    RETURN QUERY SELECT p.*, true FROM orchestration.policy_versions p WHERE p.id = p_id;
    RETURN;
  END IF;
  IF v_status = 'RETIRED' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-002', 'P7101', format('policy version %s is already RETIRED', p_id),
      'policy_versions', jsonb_build_object('id', p_id, 'from', v_status, 'to', 'RETIRED'),
      'Another login or a rotation has retired it. No further call is needed.', 'status'
    );
  END IF;
  RETURN QUERY
  UPDATE orchestration.policy_versions p
  SET status = 'RETIRED', retired_db_user = SESSION_USER
  WHERE p.id = p_id
  RETURNING p.*, false;
END
$$;

ALTER FUNCTION orchestration.retire_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.retire_policy_version FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.retire_policy_version TO symphony_control;
