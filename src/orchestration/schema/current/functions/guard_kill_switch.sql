CREATE FUNCTION orchestration.guard_kill_switch() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_next bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NEW;
  END IF;
  -- The statement trigger has locked the gate, so events are numbered in the order of their commits.
  SELECT coalesce(max(k.event_no), 0) + 1 INTO v_next FROM orchestration.kill_switches k;
  IF EXISTS (SELECT FROM orchestration.kill_switches k WHERE k.event_no = NEW.event_no) THEN
    -- The primary key rejects this row.
    v_next := NEW.event_no;
  END IF;
  NEW.event_no := coalesce(NEW.event_no, v_next);
  NEW.occurred_at := clock_timestamp();
  NEW.db_user := SESSION_USER;
  NEW.xact_id := pg_current_xact_id()::text::bigint;
  IF NEW.event_no <> v_next THEN
    PERFORM orchestration.raise_invariant(
      'INV-KIL-001', '22023', 'event_no must be the number after the last event', 'kill_switches',
      jsonb_build_object('event_no', NEW.event_no, 'expected', v_next),
      'Leave event_no out: the database sets it.', 'event_no'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_kill_switch OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_kill_switch FROM PUBLIC;
