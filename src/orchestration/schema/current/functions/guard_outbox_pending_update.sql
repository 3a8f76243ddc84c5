CREATE FUNCTION orchestration.guard_outbox_pending_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The trigger's WHEN clause calls this only if an identity column or attempt_count changes, if a
-- lease is renewed under its token, or if a lease ends.
DECLARE
  v_copied boolean := current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription();
  v_opened integer;
  v_closed integer;
BEGIN
  IF (NEW.outbox_id, NEW.instruction_id, NEW.participant_id, NEW.sequence_id, NEW.rail_type)
    IS DISTINCT FROM
    (OLD.outbox_id, OLD.instruction_id, OLD.participant_id, OLD.sequence_id, OLD.rail_type) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'the identity of a pending row cannot change',
      'payment_outbox_pending', jsonb_build_object('outbox_id', OLD.outbox_id),
      'Only the lease, attempt_count and next_attempt_at can change.', 'outbox_id'
    );
  END IF;
  IF OLD.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token THEN
    IF v_copied THEN
      -- The copied attempts may arrive later. verify_outbox reports those that contradict the row.
      RETURN NEW;
    END IF;
    SELECT coalesce(max(a.attempt_no) FILTER (WHERE a.phase = 'OPEN'), 0),
           coalesce(max(a.attempt_no) FILTER (WHERE a.phase = 'CLOSE'), 0)
    INTO v_opened, v_closed
    FROM orchestration.payment_outbox_attempts a
    WHERE a.outbox_id = OLD.outbox_id;
    IF NEW.lease_token IS NOT NULL OR v_opened <> v_closed OR NEW.attempt_count <> v_closed THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-002', 'P7002', 'a lease cannot end before its attempt is closed',
        'payment_outbox_pending',
        jsonb_build_object('outbox_id', OLD.outbox_id, 'worker_id', OLD.claimed_by),
        'Use complete_outbox_attempt or repair_expired_leases: they close the attempt first.',
        'lease_expires_at'
      );
    END IF;
    RETURN NEW;
  END IF;
  IF NEW.attempt_count
    <> OLD.attempt_count + (OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL)::integer THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-005', 'P7005', 'attempt_count must grow by 1 with a new lease, and only then',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', OLD.outbox_id, 'attempt_count', NEW.attempt_count),
      'Use claim_outbox_batch to open an attempt.', 'attempt_count'
    );
  END IF;
  IF NEW.claimed_by <> OLD.claimed_by
    OR OLD.lease_expires_at <= clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-002', 'P7002', 'only the worker of a lease can renew it, and only before it expires',
      'payment_outbox_pending',
      jsonb_build_object('outbox_id', OLD.outbox_id, 'worker_id', NEW.claimed_by),
      'Claim the item again: another worker may have it now.', 'lease_expires_at'
    );
  END IF;
  IF NOT v_copied THEN
    -- Claims and repairs read rows up to the current time in next_attempt_at order. They would miss
    -- an expired lease whose row has a later next_attempt_at.
    NEW.next_attempt_at := least(NEW.next_attempt_at, NEW.lease_expires_at);
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_update OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_update FROM PUBLIC;
