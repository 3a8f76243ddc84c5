CREATE FUNCTION orchestration.record_policy_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- A rotation updates and inserts in one statement, and is one act: what one statement has written
-- carries one transaction and one command number. The number of a row that somebody has changed in
-- vain since (xmax) is another's, and not believed.
BEGIN
  IF EXISTS (
    SELECT FROM inserted i
    JOIN orchestration.policy_versions n ON n.id = i.id
    WHERE n IS DISTINCT FROM i
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'a version is changed within the statement that enters it',
      'policy_versions', '{}', 'Do one act after the other.', 'id'
    );
  END IF;
  -- What was updated in the same statement is told of by its own trigger, and this with it.
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT 'ROTATE', 'policy_versions', jsonb_build_object(i.id, to_jsonb(i) - 'xact_id')
  FROM inserted i
  JOIN orchestration.policy_versions n ON n.id = i.id
  WHERE NOT EXISTS (
    SELECT FROM orchestration.policy_versions d
    WHERE d.id <> n.id
      AND d.xmin = n.xmin
      AND d.cmin = n.cmin
      AND d.xmax IN ('0'::xid, d.xmin)
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_policy_entry OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_policy_entry FROM PUBLIC;
