CREATE VIEW orchestration.transaction_attempt_result
WITH (security_invoker = true)
AS
SELECT a.*, false AS replayed
FROM orchestration.transaction_attempts a;

ALTER VIEW orchestration.transaction_attempt_result OWNER TO symphony_owner;
