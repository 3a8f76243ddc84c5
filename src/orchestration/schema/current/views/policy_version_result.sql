-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.policy_version_result
WITH (security_invoker = true)
AS
SELECT p.*, false AS replayed
FROM orchestration.policy_versions p;

ALTER VIEW orchestration.policy_version_result OWNER TO symphony_owner;
