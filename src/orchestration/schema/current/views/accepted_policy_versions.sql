CREATE VIEW orchestration.accepted_policy_versions WITH (security_invoker=true) AS
 SELECT id,
    checksum,
    status,
    activated_at,
    grace_expires_at
   FROM orchestration.policy_versions
  WHERE ((status = 'ACTIVE'::text) OR ((status = 'GRACE'::text) AND (grace_expires_at > clock_timestamp())));
-- owner: symphony_owner
