CREATE FUNCTION orchestration.guard_outbox_pending_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a table
-- was empty would still scan the whole table after it has grown.
DECLARE
  v_outbox_id uuid;
BEGIN
  SELECT d.outbox_id INTO v_outbox_id
  FROM deleted d
  WHERE NOT EXISTS (
    SELECT FROM orchestration.payment_outbox_attempts t
    WHERE t.outbox_id = d.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
    OFFSET 0
  )
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-OUT-009', 'P7006', 'a pending row cannot be deleted before its item ended',
      'payment_outbox_pending', jsonb_build_object('outbox_id', v_outbox_id),
      'Use complete_outbox_attempt: it deletes the row when the item is DISPATCHED or FAILED.',
      'outbox_id'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.guard_outbox_pending_delete OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_outbox_pending_delete FROM PUBLIC;
