CREATE FUNCTION orchestration.guard_revocation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the column that holds the credential's hash.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_hash text := to_jsonb(NEW) ->> TG_ARGV[0];
  v_now timestamptz := clock_timestamp();
  v_last integer;
  v_known boolean;
BEGIN
  IF NOT v_replica THEN
    NEW.revoked_at := coalesce(NEW.revoked_at, v_now);
    NEW.recorded_at := v_now;
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF (octet_length(v_hash) = 64 AND v_hash ~ '^[0-9a-f]*$') IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-003', 'P7201', format('%s must be a SHA-256 in lowercase hex', TG_ARGV[0]),
      -- DETAIL must not contain the value, which can be the credential itself.
      TG_TABLE_NAME, jsonb_build_object('column', TG_ARGV[0], 'octets', octet_length(v_hash)),
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.', TG_ARGV[0]
    );
  END IF;
  -- The statement trigger has locked the gate, so no other transaction uses the next number.
  EXECUTE format(
    'SELECT coalesce(max(revocation_no), 0), coalesce(bool_or(revocation_no = $2), false)'
    ' FROM orchestration.%I WHERE %I = $1',
    TG_TABLE_NAME, TG_ARGV[0]
  ) INTO v_last, v_known USING v_hash, NEW.revocation_no;
  IF v_known THEN
    -- The primary key rejects this row, or ON CONFLICT DO NOTHING skips it.
    RETURN NEW;
  END IF;
  IF NOT v_replica THEN
    NEW.revocation_no := coalesce(NEW.revocation_no, v_last + 1);
  END IF;
  IF NEW.revocation_no <> v_last + 1
    AND NOT (v_replica AND orchestration.copies_a_subscription()) THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-006', 'P7201',
      'revocation_no must be the number after the credential''s last record', TG_TABLE_NAME,
      jsonb_build_object('revocation_no', NEW.revocation_no, 'expected', v_last + 1),
      'Leave revocation_no out: the database sets it.', 'revocation_no'
    );
  END IF;
  IF NOT isfinite(NEW.revoked_at)
    OR NEW.revoked_at > v_now AND NOT (v_replica AND orchestration.copies_a_subscription()) THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-005', 'P7201', 'revoked_at must not be in the future', TG_TABLE_NAME,
      jsonb_build_object('revocation_no', NEW.revocation_no, 'revoked_at', NEW.revoked_at),
      'Leave revoked_at out, or pass the past time from which the credential counts as revoked.',
      'revoked_at'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_revocation OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_revocation FROM PUBLIC;
