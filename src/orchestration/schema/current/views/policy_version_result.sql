CREATE VIEW orchestration.policy_version_result WITH (security_invoker=true) AS
 SELECT id,
    description,
    checksum,
    status,
    activated_at,
    grace_expires_at,
    retired_at,
    retired_db_user,
    created_at,
    created_by,
    db_user,
    xact_id,
    false AS replayed
   FROM orchestration.policy_versions p;
-- owner: symphony_owner
