CREATE FUNCTION orchestration.guard_audit_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its five checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_known boolean;
  v_head_seq bigint;
  v_last_seq bigint;
  v_last_hash text;
  v_hash text;
  -- If the client stops responding in this transaction, every act of governance waits for the head.
  v_bound text := orchestration.bound_idle_time();
BEGIN
  -- The head is locked first, and the newest entry is read in a later statement. A transaction that
  -- waited for the lock therefore reads the entry that the other one wrote. With an older snapshot,
  -- locking a head that has moved fails with 40001.
  SELECT h.chain_seq INTO v_head_seq
  FROM orchestration.audit_log_head h
  WHERE NOT v_copied
  FOR UPDATE;
  IF NOT FOUND AND NOT v_replica THEN
    INSERT INTO orchestration.audit_log_head DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT h.chain_seq INTO v_head_seq FROM orchestration.audit_log_head h FOR UPDATE;
  END IF;
  SELECT a.chain_seq, a.record_hash INTO v_last_seq, v_last_hash
  FROM orchestration.audit_log a
  ORDER BY a.chain_seq DESC
  LIMIT 1;
  v_last_seq := coalesce(v_last_seq, 0);
  v_last_hash := coalesce(v_last_hash, '');
  v_known := EXISTS (SELECT FROM orchestration.audit_log a WHERE a.chain_seq = NEW.chain_seq);
  IF NOT v_replica THEN
    NEW.chain_seq := coalesce(NEW.chain_seq, v_last_seq + 1);
    NEW.prev_hash := coalesce(
      NEW.prev_hash, CASE WHEN NEW.chain_seq = 1 THEN '' ELSE v_last_hash END);
    NEW.occurred_at := coalesce(NEW.occurred_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.db_role := CASE current_setting('role')
      WHEN 'none' THEN SESSION_USER::text
      ELSE current_setting('role')
    END;
    NEW.client_addr := inet_client_addr();
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  v_hash := orchestration.audit_record_hash(NEW);
  IF NOT v_replica THEN
    NEW.record_hash := coalesce(NEW.record_hash, v_hash);
  END IF;
  IF v_known THEN
    -- The primary key rejects this row.
    RETURN NEW;
  END IF;
  IF v_head_seq > v_last_seq THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'the newest entries of the audit log are missing', 'audit_log',
      jsonb_build_object('head', v_head_seq, 'chain_seq', v_last_seq),
      'Run verify_audit_log.', 'chain_seq'
    );
  END IF;
  IF NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'occurred_at must not be in the future', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq, 'occurred_at', NEW.occurred_at),
      'Leave occurred_at out: the database sets it.', 'occurred_at'
    );
  END IF;
  IF NOT v_copied
    AND (NEW.chain_seq, NEW.prev_hash) IS DISTINCT FROM (v_last_seq + 1, v_last_hash) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'chain_seq and prev_hash must continue the audit log', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq, 'expected', v_last_seq + 1),
      'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
    );
  END IF;
  IF NEW.record_hash <> v_hash THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'record_hash is not the hash of the entry', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq),
      'Leave record_hash out: the database computes it.', 'record_hash'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_audit_log OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_audit_log FROM PUBLIC;
