-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.kill_switch_result
WITH (security_invoker = true)
AS
SELECT k.*, false AS replayed
FROM orchestration.kill_switches k;

ALTER VIEW orchestration.kill_switch_result OWNER TO symphony_owner;
