CREATE FUNCTION orchestration.set_leases_apart(
  p_now timestamptz,
  p_last_due timestamptz,
  p_limit bigint
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
-- enable_seqscan, enable_bitmapscan and enable_sort are off because only a scan of the index in its
-- own order reads no more rows than it returns. The session keeps the first plan, which may have
-- been made while the table was empty.
-- Sets next_attempt_at to the end of the lease in leased rows that a claim has passed over, up to
-- p_last_due. Until then no claim reads these rows again.
DECLARE
  v_leased uuid[];
BEGIN
  WITH found AS MATERIALIZED (
    SELECT p.outbox_id
    FROM orchestration.payment_outbox_pending p
    WHERE p.next_attempt_at <= p_last_due AND p.lease_expires_at > p_now
    ORDER BY p.next_attempt_at, p.outbox_id
    LIMIT p_limit
    FOR UPDATE SKIP LOCKED
  )
  SELECT array_agg(f.outbox_id) INTO v_leased FROM found f;
  UPDATE orchestration.payment_outbox_pending p
  SET next_attempt_at = p.lease_expires_at
  WHERE p.outbox_id = ANY (v_leased) AND p.lease_expires_at > p_now;
END
$$;

ALTER FUNCTION orchestration.set_leases_apart OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.set_leases_apart FROM PUBLIC;
