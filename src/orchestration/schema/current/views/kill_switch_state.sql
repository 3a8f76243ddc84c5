CREATE VIEW orchestration.kill_switch_state
WITH (security_barrier = true)
AS
SELECT DISTINCT ON (k.scope, k.target)
       k.scope,
       k.target,
       k.action = 'ENGAGE' AS engaged,
       k.reason,
       k.actor,
       k.occurred_at,
       k.db_user
FROM orchestration.kill_switches k
ORDER BY k.scope, k.target, k.event_no DESC;

ALTER VIEW orchestration.kill_switch_state OWNER TO symphony_owner;
GRANT SELECT ON orchestration.kill_switch_state
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
