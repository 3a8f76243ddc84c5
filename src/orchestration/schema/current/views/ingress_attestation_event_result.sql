CREATE VIEW orchestration.ingress_attestation_event_result WITH (security_invoker=true) AS
 SELECT attestation_id,
    event,
    caller_identity,
    terminal_status,
    occurred_at,
    recorded_by,
    db_user,
    xact_id,
    false AS replayed
   FROM orchestration.ingress_attestation_events e;
-- owner: symphony_owner
