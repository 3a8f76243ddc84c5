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
-- Longer than 70 lines because the last statement must make the whole rotation at once.
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
  -- The grace is compared and added in seconds, because a month counts as 30 days in a comparison and
  -- as a calendar month in an addition. PostgreSQL 17 and later have infinite intervals.
  IF (extract(epoch FROM p_grace) BETWEEN 0 AND 36525 * 86400.0) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_grace must be between zero and 36,525 days', 'policy_versions',
      jsonb_build_object('id', p_id, 'grace', p_grace::text),
      'Pass an interval of zero or more, for example 7 days.', 'grace_expires_at'
    );
  END IF;
  PERFORM orchestration.lock_gate('policy_gate');
  -- A repeated call returns the version that the first call inserted, even if a later rotation has
  -- replaced that version since.
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
      format('the ACTIVE policy version is %s, not %s', coalesce(v_active, 'missing'),
        p_expected_active),
      'policy_versions',
      jsonb_build_object('id', p_id, 'active', v_active, 'expected_active', p_expected_active),
      'Read the ACTIVE version and decide again.', 'status'
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
  -- One statement, so that an ACTIVE version exists at its end even under SET CONSTRAINTS IMMEDIATE,
  -- and the audit log gets one entry. The old GRACE version is retired before the ACTIVE version
  -- becomes GRACE.
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
