-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.payment_outbox_intervention_result
WITH (security_invoker = true)
AS
SELECT v.*, false AS replayed
FROM orchestration.payment_outbox_interventions v;

ALTER VIEW orchestration.payment_outbox_intervention_result OWNER TO symphony_owner;
