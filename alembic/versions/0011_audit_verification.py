"""Create verify_audit_log: it checks the chain, and that every act has an entry and vice versa.

Serves: INV-AUD-001.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute(
        """
CREATE FUNCTION orchestration.verify_audit_log()
RETURNS TABLE (
  ok boolean,
  entries bigint,
  break_chain_seq bigint,
  break_table_name text,
  break_key text,
  break_reason text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- Longer than 70 lines because all kinds of break are found by one query over one snapshot.
  WITH chain AS (
    SELECT a AS entry,
           row_number() OVER w AS expected_seq,
           lag(a.record_hash, 1, '') OVER w AS expected_prev
    FROM orchestration.audit_log a
    WINDOW w AS (ORDER BY a.chain_seq)
  ), breaks AS (
    SELECT (c.entry).chain_seq, NULL AS table_name, NULL AS key, 1 AS rank,
           CASE
             WHEN (c.entry).chain_seq <> c.expected_seq
               THEN 'entries before this one are missing'
             WHEN (c.entry).prev_hash <> c.expected_prev
               THEN 'prev_hash is not the record_hash of the row before'
             ELSE 'record_hash is not the hash of the entry'
           END AS reason
    FROM chain c
    WHERE (c.entry).chain_seq <> c.expected_seq
      OR (c.entry).prev_hash <> c.expected_prev
      OR (c.entry).record_hash <> orchestration.audit_record_hash(c.entry)
    UNION ALL
    SELECT coalesce(h.chain_seq, l.chain_seq), NULL, NULL, 2,
           CASE
             WHEN h.chain_seq IS NULL THEN 'the head is missing'
             WHEN h.chain_seq > l.chain_seq
               THEN 'the newest entries are missing: the head is ahead'
             WHEN h.chain_seq < l.chain_seq THEN 'the head is behind'
             ELSE 'the head has a different record_hash'
           END
    FROM (
      SELECT coalesce(max(a.chain_seq), 0) AS chain_seq,
             coalesce((array_agg(a.record_hash ORDER BY a.chain_seq DESC))[1], '') AS record_hash
      FROM orchestration.audit_log a
    ) l
    LEFT JOIN orchestration.audit_log_head h ON true
    WHERE (h.chain_seq, h.record_hash) IS DISTINCT FROM (l.chain_seq, l.record_hash)
  ), stored (table_name, key, content) AS (
    -- The rows of the audited tables, in the form in which the triggers write them into the log.
    SELECT 'schema_revision', '', to_jsonb(r)
    FROM orchestration.schema_revision r
    UNION ALL
    SELECT 'policy_versions', p.id, to_jsonb(p) - 'xact_id'
    FROM orchestration.policy_versions p
    UNION ALL
    SELECT 'revoked_client_certs', c.cert_fingerprint_sha256 || '/' || c.revocation_no,
           to_jsonb(c) - 'xact_id'
    FROM orchestration.revoked_client_certs c
    UNION ALL
    SELECT 'revoked_tokens', t.token_hash || '/' || t.revocation_no, to_jsonb(t) - 'xact_id'
    FROM orchestration.revoked_tokens t
    UNION ALL
    SELECT 'kill_switches', k.event_no::text, to_jsonb(k) - 'xact_id'
    FROM orchestration.kill_switches k
    UNION ALL
    SELECT 'payment_outbox_items', i.outbox_id::text,
           to_jsonb(i) - '{payload,payload_salt,context,xact_id}'::text[]
    FROM orchestration.payment_outbox_items i
    WHERE i.redrive_no > 0
    UNION ALL
    SELECT 'payment_outbox_late_results', l.outbox_id || '/' || l.result_no,
           to_jsonb(l) - 'xact_id'
    FROM orchestration.payment_outbox_late_results l
    WHERE l.source = 'RECONCILIATION'
    UNION ALL
    SELECT 'payment_outbox_interventions', v.outbox_id || '/' || v.intervention_no,
           to_jsonb(v) - 'xact_id'
    FROM orchestration.payment_outbox_interventions v
  ), recorded AS (
    -- One row for each row that an entry contains.
    SELECT a.chain_seq, a.table_name, '' AS key, a.before, a.after
    FROM orchestration.audit_log a
    WHERE a.table_name = 'schema_revision'
    UNION ALL
    SELECT a.chain_seq, a.table_name, k.key, k.before, k.after
    FROM orchestration.audit_log a
    CROSS JOIN LATERAL (
      SELECT coalesce(o.key, n.key) AS key, o.value AS before, n.value AS after
      FROM jsonb_each(coalesce(a.before, '{}')) o
      FULL JOIN jsonb_each(a.after) n ON n.key = o.key
    ) k
    WHERE a.table_name <> 'schema_revision'
  ), numbered AS (
    SELECT t.*,
           row_number() OVER (PARTITION BY t.table_name, t.key ORDER BY t.chain_seq) AS nth
    FROM recorded t
  ), followed AS (
    -- Only the first entry of a row can record its insert. A later entry without a before state does
    -- not belong to the history of the row.
    SELECT n.*,
           lead(n.before) OVER w AS next_before,
           lead(n.chain_seq) OVER w IS NULL AS last
    FROM numbered n
    WHERE n.nth = 1 OR n.before IS NOT NULL
    WINDOW w AS (PARTITION BY n.table_name, n.key ORDER BY n.chain_seq)
  ), checked AS (
    -- A valid change only goes forward, so that two forged entries cannot change a row and restore it.
    -- Rows of the other tables never change. The texts of times in UTC sort like the times. Each CASE
    -- checks the JSON type first, because a forged entry can contain any JSON.
    SELECT f.chain_seq, f.table_name, f.key, f.after, f.next_before, f.last, s.content,
           f.nth = 1 AND f.before IS NOT NULL AS without_insert,
           f.after IS NULL OR f.last AND s.content IS NULL AS without_row,
           f.before IS NOT NULL AND NOT coalesce(
             CASE
               WHEN f.table_name = 'schema_revision'
                 AND jsonb_typeof(f.before -> 'changes') = 'number' THEN
                 f.after -> 'changes' = to_jsonb((f.before ->> 'changes')::numeric + 1)
               WHEN f.table_name = 'policy_versions'
                 AND jsonb_typeof(f.before) = 'object'
                 AND jsonb_typeof(f.after) = 'object' THEN
                 f.before - '{status,grace_expires_at,retired_at,retired_db_user}'::text[]
                   = f.after - '{status,grace_expires_at,retired_at,retired_db_user}'::text[]
                 AND CASE WHEN (f.before ->> 'status', f.after ->> 'status') = ('GRACE', 'GRACE')
                   THEN (f.after ->> 'grace_expires_at') COLLATE "C"
                     < (f.before ->> 'grace_expires_at') COLLATE "C"
                   ELSE array_position('{ACTIVE,GRACE,RETIRED}', f.before ->> 'status')
                     < array_position('{ACTIVE,GRACE,RETIRED}', f.after ->> 'status') END
             END, false) AS not_forward
    FROM followed f
    LEFT JOIN stored s ON s.table_name = f.table_name AND s.key = f.key
  ), unexplained AS (
    SELECT n.chain_seq, n.table_name, n.key, 'no act explains this entry' AS reason
    FROM numbered n
    WHERE n.nth > 1 AND n.before IS NULL
    UNION ALL
    SELECT c.chain_seq, c.table_name, c.key,
           CASE
             WHEN c.without_insert OR c.without_row OR c.not_forward
               THEN 'no act explains this entry'
             WHEN c.last AND c.after <> c.content
               THEN 'no act explains this entry: its row has different content now'
             WHEN NOT c.last AND c.after <> c.next_before
               THEN 'no act explains this entry: the next entry starts from different content'
           END
    FROM checked c
    UNION ALL
    SELECT a.chain_seq, a.table_name, NULL, 'no act explains this entry'
    FROM orchestration.audit_log a
    WHERE NOT EXISTS (SELECT FROM recorded t WHERE t.chain_seq = a.chain_seq)
    UNION ALL
    SELECT NULL, s.table_name, s.key, 'no entry records this act'
    FROM stored s
    WHERE NOT EXISTS (
      SELECT FROM recorded t WHERE t.table_name = s.table_name AND t.key = s.key)
  ), all_breaks AS (
    SELECT * FROM breaks
    UNION ALL
    SELECT u.chain_seq, u.table_name, u.key, 3, u.reason
    FROM unexplained u
    WHERE u.reason IS NOT NULL
  )
  SELECT b.reason IS NULL, (SELECT count(*) FROM orchestration.audit_log), b.chain_seq,
         b.table_name, b.key, b.reason
  FROM (SELECT) once
  LEFT JOIN LATERAL (
    -- If the chain is broken, the entries prove nothing, so a break of the chain comes first.
    SELECT * FROM all_breaks ORDER BY rank = 3, chain_seq, rank, table_name, key LIMIT 1
  ) b ON true
$$;

ALTER FUNCTION orchestration.verify_audit_log OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_audit_log FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_audit_log TO symphony_control, symphony_auditor
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0011'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.verify_audit_log")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0010'")
    op.execute("RESET ROLE")
