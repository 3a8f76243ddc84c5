CREATE FUNCTION orchestration.rotate_policy_version(
  p_id text,
  p_description text,
  p_checksum text,
  p_grace interval,
  p_created_by text DEFAULT SESSION_USER,
  p_expected_active text DEFAULT NULL
) RETURNS SETOF orchestration.policy_version_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
  v_active text;
  v_expires_at timestamptz;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'policy_versions', ARRAY['id', 'checksum', 'created_by', 'id'],
    ARRAY[p_id, p_checksum, p_created_by, p_expected_active]
  );
  PERFORM orchestration.refuse_long_texts(
    'policy_versions', ARRAY['description'], ARRAY[p_description], 4000
  );
  -- Judged and added in seconds: a month is 30 days where intervals are compared, and what the
  -- calendar says where they are added. From 17 on an interval can be infinite.
  IF (extract(epoch FROM p_grace) BETWEEN 0 AND 36525 * 86400.0) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'grace is between zero and a hundred years', 'policy_versions',
      jsonb_build_object('id', p_id, 'grace', p_grace::text),
      'Give a grace of zero or more.', 'grace_expires_at'
    );
  END IF;
  PERFORM orchestration.lock_gate('policy_gate');
  -- The same rotation again: this version may itself have been replaced since, and that stays.
  RETURN QUERY
  SELECT p.*, true
  FROM orchestration.policy_versions p
  WHERE p.id = p_id AND p.checksum = p_checksum AND p.db_user = SESSION_USER;
  IF FOUND THEN
    RETURN;
  END IF;
  SELECT p.id INTO v_active FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE';
  IF p_expected_active IS NOT NULL AND v_active IS DISTINCT FROM p_expected_active THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-005', 'P7104',
      format('%s is ACTIVE, not %s', coalesce(v_active, 'no version'), p_expected_active),
      'policy_versions',
      jsonb_build_object('id', p_id, 'active', v_active, 'expected_active', p_expected_active),
      'Read the ACTIVE version again and decide anew.', 'status'
    );
  END IF;
  IF v_active IS NULL THEN
    RETURN QUERY
    INSERT INTO orchestration.policy_versions (id, description, checksum, created_by)
    VALUES (p_id, p_description, p_checksum, p_created_by)
    RETURNING *, false;
    RETURN;
  END IF;
  v_expires_at := clock_timestamp() + make_interval(secs => extract(epoch FROM p_grace)::float8);
  -- One statement, so that an ACTIVE version exists at its end under SET CONSTRAINTS IMMEDIATE too,
  -- and the audit log tells of one act. The old GRACE version goes before the next one comes.
  RETURN QUERY
  WITH retired AS (
    UPDATE orchestration.policy_versions p
    SET status = 'RETIRED'
    WHERE p.status = 'GRACE'
    RETURNING p.id
  ), demoted AS (
    UPDATE orchestration.policy_versions p
    SET status = 'GRACE', grace_expires_at = v_expires_at
    WHERE p.status = 'ACTIVE' AND (SELECT count(*) FROM retired) >= 0
    RETURNING p.id
  )
  INSERT INTO orchestration.policy_versions (id, description, checksum, created_by)
  SELECT p_id, p_description, p_checksum, p_created_by FROM demoted
  RETURNING *, false;
END
$$;

ALTER FUNCTION orchestration.rotate_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.rotate_policy_version FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.rotate_policy_version TO symphony_control;
