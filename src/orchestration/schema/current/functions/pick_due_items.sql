CREATE FUNCTION orchestration.pick_due_items(
  p_now timestamptz,
  p_limit bigint,
  p_after_due timestamptz,
  p_after_id uuid,
  p_stopped_participants text[],
  p_stopped_rails text[],
  OUT picked uuid[],
  OUT dead uuid[],
  OUT last_due timestamptz,
  OUT last_id uuid,
  OUT passed_over bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET plan_cache_mode = force_generic_plan
AS $$
-- enable_seqscan, enable_bitmapscan and enable_sort are off, and plan_cache_mode is
-- force_generic_plan, because only a scan of the index in its own order reads no more rows than it
-- returns. The planner must choose it whatever the statistics say.
-- Locks the first free rows after a position, those due longest first. `dead` is the part of
-- `picked` whose lease has expired or whose item has ended. `passed_over` counts the rows that the
-- scan read and did not pick.
-- The function is slightly over 70 lines because its settings and result columns take 25.
DECLARE
  v_met bigint;
BEGIN
  v_met := pg_stat_get_xact_tuples_fetched(
    'orchestration.ix_payment_outbox_pending_next_attempt_at_outbox_id'::regclass);
  WITH found AS MATERIALIZED (
    SELECT p.outbox_id, p.next_attempt_at,
           p.lease_token IS NOT NULL OR EXISTS (
             SELECT FROM orchestration.payment_outbox_attempts t
             WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
             OFFSET 0
           ) AS dead
    FROM orchestration.payment_outbox_pending p
    WHERE p.next_attempt_at <= p_now
      AND (p.next_attempt_at, p.outbox_id) > (p_after_due, p_after_id)
      AND (p.lease_expires_at IS NULL OR p.lease_expires_at <= p_now)
      AND (p_stopped_participants IS NULL OR p.participant_id <> ALL (p_stopped_participants))
      AND (p_stopped_rails IS NULL OR p.rail_type <> ALL (p_stopped_rails))
      -- A row without a lease that has used all its attempts cannot be claimed. The guards prevent
      -- such a row, and verify_outbox reports it.
      AND (
        p.attempt_count = 0
        OR p.lease_token IS NOT NULL
        OR p.attempt_count < (
          SELECT i.max_attempts
          FROM orchestration.payment_outbox_items i
          WHERE i.outbox_id = p.outbox_id
        )
        OR EXISTS (
          SELECT FROM orchestration.payment_outbox_attempts t
          WHERE t.outbox_id = p.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
          OFFSET 0
        )
      )
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(f.outbox_id),
         array_agg(f.outbox_id) FILTER (WHERE f.dead),
         (array_agg(f.next_attempt_at))[count(*)],
         (array_agg(f.outbox_id))[count(*)]
  INTO picked, dead, last_due, last_id
  FROM found f;
  -- The counter exists while track_counts is on, its default.
  passed_over := pg_stat_get_xact_tuples_fetched(
      'orchestration.ix_payment_outbox_pending_next_attempt_at_outbox_id'::regclass)
    - v_met - coalesce(cardinality(picked), 0);
END
$$;

ALTER FUNCTION orchestration.pick_due_items OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.pick_due_items FROM PUBLIC;
