CREATE FUNCTION orchestration.stopped_targets(p_scope text) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The recursion and the row comparison read one index entry per target, however many events there
-- are. With an equality the planner could choose to walk the primary key backwards instead.
  WITH RECURSIVE named (target) AS (
    SELECT min(coalesce(k.target, ''))
    FROM orchestration.kill_switches k
    WHERE k.scope = p_scope
    UNION ALL
    SELECT (
      SELECT min(coalesce(k.target, ''))
      FROM orchestration.kill_switches k
      WHERE k.scope = p_scope AND coalesce(k.target, '') > n.target
    )
    FROM named n
    WHERE n.target IS NOT NULL
  )
  SELECT array_agg(n.target)
  FROM named n
  CROSS JOIN LATERAL (
    SELECT k.scope, k.target, k.action
    FROM orchestration.kill_switches k
    WHERE (k.scope, coalesce(k.target, '')) <= (p_scope, n.target)
    ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
    LIMIT 1
  ) last
  WHERE (last.scope, last.target) = (p_scope, n.target) AND last.action = 'ENGAGE'
$$;

ALTER FUNCTION orchestration.stopped_targets OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.stopped_targets FROM PUBLIC;
