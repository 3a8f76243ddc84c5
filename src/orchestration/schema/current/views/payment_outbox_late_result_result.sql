-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_late_result_result
WITH (security_invoker = true)
AS
SELECT l.*, false AS replayed
FROM orchestration.payment_outbox_late_results l;

ALTER VIEW orchestration.payment_outbox_late_result_result OWNER TO symphony_owner;
