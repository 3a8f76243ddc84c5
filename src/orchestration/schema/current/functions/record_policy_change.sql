CREATE FUNCTION orchestration.record_policy_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- Records one entry per statement. If the statement also inserted a version, this is a rotation, and
-- the entry covers the inserted row too. Rows that one statement wrote have the same transaction (xmin)
-- and command number (cmin). The command number of a row with an xmax of another transaction belongs
-- to that transaction and is not used.
DECLARE
  v_action text;
  v_before jsonb;
  v_after jsonb;
  v_entered jsonb;
BEGIN
  IF EXISTS (
    SELECT FROM new_versions n
    JOIN orchestration.policy_versions p ON p.id = n.id
    WHERE p IS DISTINCT FROM n
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'a statement must not change a policy version twice',
      'policy_versions', '{}', 'Use a separate statement for each change.', 'id'
    );
  END IF;
  SELECT CASE
           WHEN bool_or(o.status = 'ACTIVE' AND n.status = 'GRACE') THEN 'DEMOTE'
           WHEN bool_or(n.status <> o.status) THEN 'RETIRE'
           ELSE 'SHORTEN'
         END,
         jsonb_object_agg(o.id, to_jsonb(o) - 'xact_id'),
         jsonb_object_agg(n.id, to_jsonb(n) - 'xact_id')
  INTO v_action, v_before, v_after
  FROM old_versions o
  JOIN new_versions n ON n.id = o.id
  WHERE n IS DISTINCT FROM o;
  SELECT jsonb_object_agg(e.id, to_jsonb(e) - 'xact_id') INTO v_entered
  FROM orchestration.policy_versions e
  WHERE e.xmax = '0'::xid
    AND NOT EXISTS (SELECT FROM new_versions n WHERE n.id = e.id)
    AND EXISTS (
      SELECT FROM new_versions n
      JOIN orchestration.policy_versions d ON d.id = n.id
      WHERE d.xmin = e.xmin AND d.cmin = e.cmin AND d.xmax IN ('0'::xid, d.xmin)
    );
  IF v_entered IS NOT NULL THEN
    v_action := 'ROTATE';
    v_after := coalesce(v_after, '{}') || v_entered;
  END IF;
  IF v_after IS NULL THEN
    RETURN NULL;
  END IF;
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (v_action, 'policy_versions', v_before, v_after);
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_policy_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_policy_change FROM PUBLIC;
