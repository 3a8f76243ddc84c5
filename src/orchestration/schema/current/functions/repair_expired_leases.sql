CREATE FUNCTION orchestration.repair_expired_leases(p_limit bigint DEFAULT 1000)
RETURNS TABLE (outbox_id uuid, attempt_no integer, state text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  v_now timestamptz := clock_timestamp();
  v_stale uuid[];
BEGIN
  IF (p_limit BETWEEN 0 AND 10000) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_limit must be between 0 and 10,000', 'payment_outbox_pending',
      jsonb_build_object('limit', p_limit), 'Pass a limit within these bounds.'
    );
  END IF;
  -- A transaction that waits for these locks may hold a gate, so the locks must not stay with a
  -- client that has stopped.
  PERFORM orchestration.bound_idle_time();
  WITH picked AS MATERIALIZED (
    SELECT p.outbox_id
    FROM orchestration.payment_outbox_pending p
    -- No lease ends before next_attempt_at, so items scheduled for later are not read.
    WHERE p.next_attempt_at <= v_now AND p.lease_expires_at <= v_now
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(k.outbox_id) INTO v_stale FROM picked k;
  RETURN QUERY
  SELECT a.outbox_id, a.attempt_no, a.state
  FROM orchestration.close_dead_attempts(v_stale) a;
END
$$;

ALTER FUNCTION orchestration.repair_expired_leases OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.repair_expired_leases FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.repair_expired_leases
TO symphony_executor, symphony_control;
