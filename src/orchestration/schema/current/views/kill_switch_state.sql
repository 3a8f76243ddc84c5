CREATE VIEW orchestration.kill_switch_state WITH (security_barrier=true) AS
 SELECT DISTINCT ON (scope, target) scope,
    target,
    (action = 'ENGAGE'::text) AS engaged,
    reason,
    actor,
    occurred_at,
    db_user
   FROM orchestration.kill_switches k
  ORDER BY scope, target, event_no DESC;
-- owner: symphony_owner
