CREATE FUNCTION orchestration.guard_attestation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its checks raises its own error, and because a call of another
-- function costs a noticeable part of an insert.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_detail jsonb := jsonb_build_object(
    'caller_identity', NEW.caller_identity, 'idempotency_key', NEW.idempotency_key);
  v_head_seq bigint;
  v_last_seq bigint;
  v_last_hash text;
  v_last_at timestamptz;
  v_hash text;
BEGIN
  IF NEW.id IS NOT NULL THEN
    IF EXISTS (SELECT FROM orchestration.ingress_attestations a WHERE a.id = NEW.id) THEN
      -- The primary key rejects this row. The columns that the caller left out are filled with values
      -- that no chain contains: NOT NULL must not reject the row first, and ON CONFLICT must not find
      -- another record by them.
      IF NOT v_replica THEN
        NEW.chain_seq := coalesce(
          NEW.chain_seq, CASE WHEN NEW.prev_hash = '' THEN 1 ELSE 9223372036854775807 END);
        NEW.prev_hash := coalesce(
          NEW.prev_hash, CASE WHEN NEW.chain_seq = 1 THEN '' ELSE NEW.id::text END);
        NEW.attested_at := coalesce(NEW.attested_at, clock_timestamp());
        NEW.record_hash := coalesce(NEW.record_hash, repeat('0', 64));
        NEW.db_user := SESSION_USER;
        NEW.xact_id := pg_current_xact_id()::text::bigint;
      END IF;
      RETURN NEW;
    END IF;
  ELSIF NOT v_replica THEN
    NEW.id := orchestration.uuid_v7();
  END IF;
  IF NEW.execution_completed AND NOT NEW.execution_started THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-002', 'P7301', 'execution_completed requires execution_started',
      'ingress_attestations', v_detail,
      'Set execution_started to true as well.', 'execution_completed'
    );
  END IF;
  IF NEW.execution_completed <> (NEW.terminal_status IS NOT NULL) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-003', 'P7301',
      'terminal_status must be set if and only if execution_completed is true',
      'ingress_attestations', v_detail,
      'Set terminal_status together with execution_completed.', 'terminal_status'
    );
  END IF;
  IF NOT v_copied AND NEW.policy_version_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.policy_version_id
  ) THEN
    -- If the version is newer than the snapshot, sharing the gate fails with 40001.
    PERFORM orchestration.share_gate('policy_gate');
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105', format('policy version %s does not exist', NEW.policy_version_id),
      'policy_versions', v_detail || jsonb_build_object('id', NEW.policy_version_id),
      'Use a version that accepted_policy_versions lists.', 'id'
    );
  END IF;

  -- The head is locked first, and the newest record is read in a later statement. A transaction that
  -- waited for the lock therefore reads the record that the other one wrote. With an older snapshot,
  -- locking a head that has moved fails with 40001.
  SELECT h.chain_seq INTO v_head_seq
  FROM orchestration.ingress_attestation_heads h
  WHERE h.caller_identity = NEW.caller_identity AND NOT v_copied
  FOR UPDATE;
  IF NOT FOUND AND NOT v_replica AND NEW.caller_identity <> '' THEN
    INSERT INTO orchestration.ingress_attestation_heads (caller_identity)
    VALUES (NEW.caller_identity)
    ON CONFLICT DO NOTHING;
    SELECT h.chain_seq INTO v_head_seq
    FROM orchestration.ingress_attestation_heads h
    WHERE h.caller_identity = NEW.caller_identity
    FOR UPDATE;
  END IF;
  SELECT a.chain_seq, a.record_hash, a.attested_at INTO v_last_seq, v_last_hash, v_last_at
  FROM orchestration.ingress_attestations a
  WHERE a.caller_identity = NEW.caller_identity
  ORDER BY a.chain_seq DESC
  LIMIT 1;
  v_last_seq := coalesce(v_last_seq, 0);
  v_last_hash := coalesce(v_last_hash, '');
  IF v_head_seq > v_last_seq THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-005', 'P7302', 'the newest records of the caller''s chain are missing',
      'ingress_attestations',
      v_detail || jsonb_build_object('head', v_head_seq, 'chain_seq', v_last_seq),
      'Run verify_attestation_chain for this caller.', 'chain_seq'
    );
  END IF;

  IF NOT v_replica THEN
    NEW.chain_seq := coalesce(NEW.chain_seq, v_last_seq + 1);
    NEW.prev_hash := coalesce(NEW.prev_hash, v_last_hash);
    -- The clock may have been set back since the caller's newest attestation.
    NEW.attested_at := coalesce(NEW.attested_at, greatest(clock_timestamp(), v_last_at));
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF NOT isfinite(NEW.attested_at)
    OR NEW.attested_at > greatest(clock_timestamp(), v_last_at) AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-011', 'P7301', 'attested_at must not be in the future', 'ingress_attestations',
      v_detail || jsonb_build_object('attested_at', NEW.attested_at),
      'Leave attested_at out: the database sets it.', 'attested_at'
    );
  END IF;
  IF NOT v_copied
    AND (NEW.chain_seq, NEW.prev_hash) IS DISTINCT FROM (v_last_seq + 1, v_last_hash) THEN
    IF v_last_seq = 0 THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-004', 'P7302',
        'the first record of a chain must have chain_seq 1 and an empty prev_hash',
        'ingress_attestations', v_detail || jsonb_build_object('chain_seq', NEW.chain_seq),
        'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
      );
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-005', 'P7302', 'chain_seq and prev_hash must continue the caller''s chain',
      'ingress_attestations',
      v_detail || jsonb_build_object('chain_seq', NEW.chain_seq, 'expected', v_last_seq + 1),
      'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
    );
  END IF;
  IF NEW.attested_at < v_last_at AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-007', 'P7301', 'attested_at must not be before the caller''s newest attestation',
      'ingress_attestations',
      v_detail || jsonb_build_object('attested_at', NEW.attested_at, 'newest', v_last_at),
      'Import a caller''s attestations in the order of attested_at, or leave attested_at out.',
      'attested_at'
    );
  END IF;
  v_hash := orchestration.attestation_record_hash(NEW);
  IF NOT v_replica THEN
    NEW.record_hash := coalesce(NEW.record_hash, v_hash);
  END IF;
  IF NEW.record_hash <> v_hash THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-006', 'P7302', 'record_hash is not the hash of the record',
      'ingress_attestations', v_detail || jsonb_build_object('chain_seq', NEW.chain_seq),
      'Leave record_hash out: the database computes it.', 'record_hash'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_attestation OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_attestation FROM PUBLIC;
