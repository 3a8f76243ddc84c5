-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.ingress_attestation_result
WITH (security_invoker = true)
AS
SELECT i.*, false AS replayed
FROM orchestration.ingress_attestations i;

ALTER VIEW orchestration.ingress_attestation_result OWNER TO symphony_owner;
