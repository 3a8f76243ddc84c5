CREATE VIEW orchestration.accepted_policy_versions
WITH (security_invoker = true)
AS
SELECT id, checksum, status, activated_at, grace_expires_at
FROM orchestration.policy_versions
WHERE status = 'ACTIVE'
   OR (status = 'GRACE' AND grace_expires_at > clock_timestamp());

ALTER VIEW orchestration.accepted_policy_versions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.accepted_policy_versions
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
