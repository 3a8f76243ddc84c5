CREATE FUNCTION orchestration.renew_outbox_lease(
  p_outbox_id uuid,
  p_lease_token uuid,
  p_worker_id text,
  p_lease interval
) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_now timestamptz;
  v_expires_at timestamptz;
BEGIN
  IF octet_length(p_worker_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'payment_outbox_pending', ARRAY['claimed_by'], ARRAY[p_worker_id]
    );
  END IF;
  -- Checked and added in seconds: the length of a day or a month depends on the date and time zone.
  IF (extract(epoch FROM p_lease) BETWEEN 1 AND 86400) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_lease must be between 1 second and 1 day',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'lease', p_lease::text),
      'Pass an interval within these bounds.', 'lease_expires_at'
    );
  END IF;
  IF NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_items i WHERE i.outbox_id = p_outbox_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- A transaction that waits for this lock may hold a gate, so the lock must not stay with a client
  -- that has stopped.
  PERFORM orchestration.bound_idle_time();
  PERFORM 1
  FROM orchestration.payment_outbox_pending p
  WHERE p.outbox_id = p_outbox_id
  FOR UPDATE;
  v_now := clock_timestamp();
  UPDATE orchestration.payment_outbox_pending p
  SET lease_expires_at = v_now + make_interval(secs => extract(epoch FROM p_lease)::float8)
  WHERE p.outbox_id = p_outbox_id
    AND p.lease_token = p_lease_token
    AND p.claimed_by = p_worker_id
    AND p.lease_expires_at > v_now
  RETURNING p.lease_expires_at INTO v_expires_at;
  IF v_expires_at IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-002', 'P7002', 'this worker no longer holds the lease',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', p_outbox_id, 'worker_id', p_worker_id),
      'Stop working on the item: another worker may have it now.', 'lease_token'
    );
  END IF;
  RETURN v_expires_at;
END
$$;

ALTER FUNCTION orchestration.renew_outbox_lease OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.renew_outbox_lease FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.renew_outbox_lease TO symphony_executor;
