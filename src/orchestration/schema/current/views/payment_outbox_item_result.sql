-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_item_result
WITH (security_invoker = true)
AS
SELECT s.*, false AS replayed
FROM orchestration.payment_outbox_item_summary s;

ALTER VIEW orchestration.payment_outbox_item_result OWNER TO symphony_owner;
