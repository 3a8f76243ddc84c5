CREATE FUNCTION orchestration.guard_unresolved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_unknown bigint;
BEGIN
  IF current_setting('session_replication_role') = 'replica'
    AND orchestration.copies_a_subscription() THEN
    -- The copied items and late results may arrive later. verify_outbox compares the count with
    -- them.
    RETURN NULL;
  END IF;
  SELECT count(*) INTO v_unknown
  FROM orchestration.payment_outbox_status s
  WHERE s.instruction_id = NEW.id AND s.known_outcome = 'UNKNOWN';
  IF NEW.unresolved <> v_unknown THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-010', 'P7404', 'unresolved must equal the number of items whose outcome is UNKNOWN',
      'instructions',
      jsonb_build_object('id', NEW.id, 'unresolved', NEW.unresolved, 'unknown', v_unknown),
      'Leave unresolved out: the database counts. Use resolve_outbox_item to resolve an item.',
      'unresolved'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_unresolved OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_unresolved FROM PUBLIC;
