CREATE VIEW orchestration.kill_switch_result WITH (security_invoker=true) AS
 SELECT event_no,
    scope,
    target,
    action,
    reason,
    key,
    actor,
    occurred_at,
    db_user,
    xact_id,
    false AS replayed
   FROM orchestration.kill_switches k;
-- owner: symphony_owner
