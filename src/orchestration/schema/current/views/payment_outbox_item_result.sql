-- No role reads it: its row type is what the functions return. It leaves out the payload, which the
-- caller already has.
CREATE VIEW orchestration.payment_outbox_item_result
WITH (security_invoker = true)
AS
SELECT i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.idempotency_key,
       i.redrive_no, i.redrive_of, i.rail_type, i.payload_hash, i.max_attempts, i.context,
       i.created_at, i.db_user, false AS replayed
FROM orchestration.payment_outbox_items i;

ALTER VIEW orchestration.payment_outbox_item_result OWNER TO symphony_owner;
