CREATE OR REPLACE FUNCTION orchestration.record_policy_change()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
DECLARE
  v_action text;
  v_before jsonb;
  v_after jsonb;
  v_entered jsonb;
BEGIN
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
  IF v_before IS NULL THEN
    RETURN NULL;
  END IF;
  IF v_action = 'DEMOTE' THEN
    SELECT jsonb_build_object(p.id, to_jsonb(p) - 'xact_id') INTO v_entered
    FROM orchestration.policy_versions p
    WHERE p.status = 'ACTIVE';
    IF v_entered IS NOT NULL THEN
      v_action := 'ROTATE';
      v_after := v_after || v_entered;
    END IF;
  END IF;
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (v_action, 'policy_versions', v_before, v_after);
  RETURN NULL;
END
$function$;
-- owner: symphony_owner
