CREATE FUNCTION orchestration.require_policy_accepted(p_policy_version_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF octet_length(p_policy_version_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'policy_versions', ARRAY['id'], ARRAY[p_policy_version_id]
    );
  END IF;
  PERFORM orchestration.share_gate('policy_gate');
  IF NOT EXISTS (
    SELECT FROM orchestration.accepted_policy_versions a WHERE a.id = p_policy_version_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105',
      format('policy version %s is not accepted', coalesce(p_policy_version_id, 'null')),
      'policy_versions', jsonb_build_object('id', p_policy_version_id),
      'Use a version that accepted_policy_versions lists.', 'id'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.require_policy_accepted OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.require_policy_accepted FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.require_policy_accepted
TO symphony_ingest, symphony_executor, symphony_control;
