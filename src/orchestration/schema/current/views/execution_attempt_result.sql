-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.execution_attempt_result
WITH (security_invoker = true)
AS
SELECT a.*, false AS replayed
FROM orchestration.execution_attempts a;

ALTER VIEW orchestration.execution_attempt_result OWNER TO symphony_owner;
