CREATE FUNCTION orchestration.refuse_if_killed(
  p_scope text,
  p_participant_ids text[] DEFAULT NULL,
  p_rail_types text[] DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
-- The caller shares the gate, so a write that passes commits before the next switch is engaged.
DECLARE
  v_switch orchestration.kill_switches;
BEGIN
  -- GLOBAL and the stage are looked up in separate statements, because one query over all costs more.
  SELECT k.*
  INTO v_switch
  FROM orchestration.kill_switches k
  WHERE (k.scope, coalesce(k.target, '')) <= ('GLOBAL', '')
  ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
  LIMIT 1;
  IF v_switch.scope IS DISTINCT FROM 'GLOBAL' OR v_switch.action = 'RELEASE' THEN
    SELECT k.*
    INTO v_switch
    FROM orchestration.kill_switches k
    WHERE (k.scope, coalesce(k.target, '')) <= (p_scope, '')
    ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
    LIMIT 1;
    IF v_switch.scope IS DISTINCT FROM p_scope OR v_switch.action = 'RELEASE' THEN
      v_switch := NULL;
    END IF;
  END IF;
  IF v_switch.scope IS NULL AND coalesce(p_participant_ids, p_rail_types) IS NOT NULL THEN
    SELECT last.*
    INTO v_switch
    FROM (
      SELECT 'PARTICIPANT', p.id FROM unnest(p_participant_ids) AS p (id)
      UNION ALL
      SELECT 'RAIL', r.type FROM unnest(p_rail_types) AS r (type)
    ) s (scope, target)
    CROSS JOIN LATERAL (
      SELECT k.*
      FROM orchestration.kill_switches k
      WHERE (k.scope, coalesce(k.target, '')) <= (s.scope, s.target)
      ORDER BY k.scope DESC, coalesce(k.target, '') DESC, k.event_no DESC
      LIMIT 1
    ) last
    WHERE (last.scope, last.target) = (s.scope, s.target)
      AND last.action = 'ENGAGE'
    LIMIT 1;
  END IF;
  IF v_switch.scope IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-001', 'P7501',
      format('the kill switch %s is engaged', concat_ws(' ', v_switch.scope, v_switch.target)),
      'kill_switches',
      jsonb_build_object('scope', v_switch.scope, 'target', v_switch.target,
        'reason', v_switch.reason),
      'Wait until the switch is released. kill_switch_state shows its state.', 'scope'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.refuse_if_killed OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_if_killed FROM PUBLIC;
