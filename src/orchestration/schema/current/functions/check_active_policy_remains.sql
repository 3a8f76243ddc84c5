CREATE FUNCTION orchestration.check_active_policy_remains() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE') THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-007', 'P7103', 'no ACTIVE policy version would remain', 'policy_versions',
      jsonb_build_object('id', NEW.id),
      'Call rotate_policy_version to replace the ACTIVE version.', 'status'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.check_active_policy_remains OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.check_active_policy_remains FROM PUBLIC;
