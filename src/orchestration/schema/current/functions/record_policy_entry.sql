CREATE FUNCTION orchestration.record_policy_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- A rotation updates and inserts in one statement, and the audit log gets one entry for it. Rows that
-- one statement wrote have the same transaction (xmin) and command number (cmin). The command number
-- of a row with an xmax of another transaction belongs to that transaction and is not used.
BEGIN
  IF EXISTS (
    SELECT FROM inserted i
    JOIN orchestration.policy_versions n ON n.id = i.id
    WHERE n IS DISTINCT FROM i
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'a statement must not insert a policy version and change it',
      'policy_versions', '{}', 'Use a separate statement for each change.', 'id'
    );
  END IF;
  -- If the statement also updated versions, record_policy_change records both.
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
