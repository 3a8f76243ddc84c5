CREATE VIEW orchestration.payment_outbox_depth
WITH (security_barrier = true)
AS
SELECT p.rail_type,
       count(*) AS pending,
       count(*) FILTER (WHERE p.lease_token IS NULL AND p.next_attempt_at <= n.now) AS due,
       count(*) FILTER (WHERE p.lease_expires_at > n.now) AS leased,
       count(*) FILTER (WHERE p.lease_expires_at <= n.now) AS expired,
       min(p.next_attempt_at) AS oldest_due_at
FROM orchestration.payment_outbox_pending p
-- The linter cannot parse an OFFSET without a FROM.
CROSS JOIN (SELECT clock_timestamp() AS now OFFSET 0) n -- noqa: PRS
GROUP BY p.rail_type;

ALTER VIEW orchestration.payment_outbox_depth OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_depth
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
