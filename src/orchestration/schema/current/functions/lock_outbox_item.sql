CREATE FUNCTION orchestration.lock_outbox_item(p_outbox_id uuid)
RETURNS SETOF orchestration.payment_outbox_items
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The instruction before the pending row, as everywhere. Both are updated, so that an older snapshot
-- which enqueues, redrives, completes or ends the instruction is answered with 40001.
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
  -- Whoever waits for these locks may hold a gate.
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
