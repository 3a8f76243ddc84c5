CREATE FUNCTION orchestration.guard_attestation_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its five checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_attestation orchestration.ingress_attestations;
  v_detail jsonb := jsonb_build_object(
    'attestation_id', NEW.attestation_id, 'event', NEW.event);
BEGIN
  SELECT a.* INTO v_attestation
  FROM orchestration.ingress_attestations a
  WHERE a.id = NEW.attestation_id;
  IF NOT v_replica THEN
    NEW.caller_identity := coalesce(NEW.caller_identity, v_attestation.caller_identity, '');
    NEW.occurred_at := coalesce(NEW.occurred_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF (NEW.event = 'EXECUTION_COMPLETED') <> (NEW.terminal_status IS NOT NULL) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-003', 'P7301',
      'terminal_status must be set if and only if event is EXECUTION_COMPLETED',
      'ingress_attestation_events', v_detail,
      'Pass terminal_status with EXECUTION_COMPLETED only.', 'terminal_status'
    );
  END IF;
  IF v_attestation.id IS NULL OR EXISTS (
    SELECT FROM orchestration.ingress_attestation_events e
    WHERE e.attestation_id = NEW.attestation_id AND e.event = NEW.event
  ) THEN
    -- The foreign key or the primary key rejects this row.
    RETURN NEW;
  END IF;
  IF NEW.caller_identity <> v_attestation.caller_identity THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'caller_identity must be that of the attestation',
      'ingress_attestation_events', v_detail,
      'Leave caller_identity out: the database sets it.', 'caller_identity'
    );
  END IF;
  IF NEW.event = 'EXECUTION_STARTED' AND v_attestation.execution_started
    OR NEW.event = 'EXECUTION_COMPLETED' AND v_attestation.execution_completed THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-010', 'P7301', 'the attestation itself already contains this event',
      'ingress_attestation_events', v_detail,
      'ingress_attestation_status shows the state of the attestation.', 'event'
    );
  END IF;
  IF NOT v_copied
    AND NEW.event = 'EXECUTION_COMPLETED'
    AND NOT v_attestation.execution_started
    AND NOT EXISTS (
      SELECT FROM orchestration.ingress_attestation_events e
      WHERE e.attestation_id = NEW.attestation_id AND e.event = 'EXECUTION_STARTED'
    ) THEN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
      -- The snapshot does not show a start that was recorded after it, but the primary key does:
      -- inserting a start fails with 40001 if there is one. Otherwise the error below undoes it.
      INSERT INTO orchestration.ingress_attestation_events
        (attestation_id, event, caller_identity, occurred_at, db_user, xact_id)
      VALUES (NEW.attestation_id, 'EXECUTION_STARTED', v_attestation.caller_identity,
        clock_timestamp(), SESSION_USER, pg_current_xact_id()::text::bigint)
      ON CONFLICT DO NOTHING;
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-002', 'P7301', 'EXECUTION_COMPLETED requires EXECUTION_STARTED',
      'ingress_attestation_events', v_detail, 'Record EXECUTION_STARTED first.', 'event'
    );
  END IF;
  IF NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-011', 'P7301', 'occurred_at must not be in the future', 'ingress_attestation_events',
      v_detail || jsonb_build_object('occurred_at', NEW.occurred_at),
      'Leave occurred_at out: the database sets it.', 'occurred_at'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attestation_event OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attestation_event FROM PUBLIC;
