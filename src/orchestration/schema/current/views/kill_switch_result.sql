-- No role reads it: its row type is what the functions return.
CREATE VIEW orchestration.kill_switch_result
WITH (security_invoker = true)
AS
SELECT k.*, false AS replayed
FROM orchestration.kill_switches k;

ALTER VIEW orchestration.kill_switch_result OWNER TO symphony_owner;
