CREATE FUNCTION orchestration.lock_outbox_item(p_outbox_id uuid)
RETURNS SETOF orchestration.payment_outbox_items
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Locks the instruction before the pending row, as all functions do, so that they cannot deadlock.
-- The UPDATEs change nothing, but they raise 40001 in a transaction with an older snapshot that
-- enqueues, redrives, completes or ends the instruction.
DECLARE
  v_item orchestration.payment_outbox_items;
BEGIN
  SELECT i.* INTO v_item
  FROM orchestration.payment_outbox_items i
  WHERE i.outbox_id = p_outbox_id;
  IF v_item.outbox_id IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', 'the item does not exist', 'payment_outbox_items',
      jsonb_build_object('outbox_id', p_outbox_id), 'Check the id.', 'outbox_id'
    );
  END IF;
  -- A transaction that waits for these locks may hold a gate, so the locks must not stay with a
  -- client that has stopped.
  PERFORM orchestration.bound_idle_time();
  UPDATE orchestration.instructions n
  SET unresolved = n.unresolved
  WHERE n.id = v_item.instruction_id;
  UPDATE orchestration.payment_outbox_pending p
  SET attempt_count = p.attempt_count
  WHERE p.outbox_id = p_outbox_id;
  RETURN NEXT v_item;
END
$$;

ALTER FUNCTION orchestration.lock_outbox_item OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_outbox_item FROM PUBLIC;
