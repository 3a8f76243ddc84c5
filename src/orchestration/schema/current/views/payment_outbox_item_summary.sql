-- The columns of an item that its functions return. The payload is left out, because the caller
-- already has it. No role reads this view.
CREATE VIEW orchestration.payment_outbox_item_summary
WITH (security_invoker = true)
AS
SELECT i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
       i.redrive_no, i.redrive_of, i.rail_type, i.payload_hash, i.max_attempts, i.context,
       i.created_at, i.db_user
FROM orchestration.payment_outbox_items i;

ALTER VIEW orchestration.payment_outbox_item_summary OWNER TO symphony_owner;
