-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.ingress_attestation_event_result
WITH (security_invoker = true)
AS
SELECT e.*, false AS replayed
FROM orchestration.ingress_attestation_events e;

ALTER VIEW orchestration.ingress_attestation_event_result OWNER TO symphony_owner;
