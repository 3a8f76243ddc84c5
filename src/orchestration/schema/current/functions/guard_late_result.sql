CREATE FUNCTION orchestration.guard_late_result() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_lease_token uuid;
  v_next integer;
  v_detail jsonb;
BEGIN
  IF v_replica AND orchestration.copies_a_subscription() THEN
    -- The attempt may come later: verify_outbox finds a result of no attempt.
    RETURN NEW;
  END IF;
  v_detail := jsonb_build_object('outbox_id', NEW.outbox_id, 'attempt_no', NEW.attempt_no);
  SELECT o.lease_token INTO v_lease_token
  FROM orchestration.payment_outbox_attempts o
  WHERE o.outbox_id = NEW.outbox_id AND o.attempt_no = NEW.attempt_no AND o.phase = 'OPEN';
  IF v_lease_token IS NULL
    OR NEW.source = 'RECONCILIATION' AND NOT EXISTS (
      SELECT FROM orchestration.payment_outbox_attempts c
      WHERE c.outbox_id = NEW.outbox_id AND c.attempt_no = NEW.attempt_no AND c.phase = 'CLOSE'
    ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7005', 'a late result belongs to an attempt that was opened, a reconciliation to one that was closed',
      'payment_outbox_late_results', v_detail,
      'Read payment_outbox_attempts. Reconcile an open attempt after its worker or repair closed it.',
      'attempt_no'
    );
  END IF;
  IF NEW.source = 'WORKER' AND NEW.lease_token IS DISTINCT FROM v_lease_token THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-011', 'P7002', 'the token is not the token of this attempt',
      'payment_outbox_late_results', v_detail,
      'A worker records what its own attempt did, under the token that the claim returned.',
      'lease_token'
    );
  END IF;
  IF NOT v_replica THEN
    PERFORM orchestration.lock_outbox_item(NEW.outbox_id);
    SELECT coalesce(max(l.result_no), 0) + 1 INTO v_next
    FROM orchestration.payment_outbox_late_results l
    WHERE l.outbox_id = NEW.outbox_id;
    IF NEW.result_no > v_next THEN
      PERFORM orchestration.raise_invariant(
        'INV-OUT-011', '22023', 'result_no does not follow the last result of the item',
        'payment_outbox_late_results',
        v_detail || jsonb_build_object('result_no', NEW.result_no, 'expected', v_next),
        'Leave result_no out: the database sets it.', 'result_no'
      );
    END IF;
    NEW.result_no := coalesce(NEW.result_no, v_next);
    NEW.instruction_version := (
      SELECT n.version
      FROM orchestration.payment_outbox_items i
      JOIN orchestration.instructions n ON n.id = i.instruction_id
      WHERE i.outbox_id = NEW.outbox_id
    );
    NEW.recorded_at := clock_timestamp();
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_late_result OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_late_result FROM PUBLIC;
