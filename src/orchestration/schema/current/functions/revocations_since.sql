CREATE FUNCTION orchestration.revocations_since(p_watermark pg_snapshot DEFAULT NULL)
RETURNS TABLE (
  watermark pg_snapshot,
  credential text,
  hash text,
  revocation_no integer,
  revoked_at timestamptz,
  recorded_at timestamptz,
  expires_at timestamptz,
  reason_code text,
  revoked_by text,
  db_user text,
  xact_id bigint
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Returns the revocations that p_watermark does not cover. Each row also contains the next watermark.
-- If there is no revocation, one row contains only the watermark.
--
-- After a crash the server assigns transaction ids again if nothing of their transactions was flushed.
-- A watermark is therefore this statement's snapshot, cut off after the last transaction that is known
-- to be durable: one whose revocation is returned here, or one that p_watermark already covers. A
-- commit is flushed before it is visible (keep_commit_durable), and recovery assigns only greater ids.
-- The next call returns what the cut leaves out.
--
-- Longer than 70 lines because the watermark and the rows must come from one snapshot, so from one
-- statement.
DECLARE
  v_now_xmax xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
  -- A standby can be behind the server that returned the watermark.
  IF pg_snapshot_xmax(p_watermark) > v_now_xmax AND NOT pg_is_in_recovery() THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_watermark must not be newer than this transaction',
      'revoked_tokens', jsonb_build_object('p_watermark', p_watermark, 'xmax', v_now_xmax),
      'Read again from the start, without p_watermark. A watermark from another cluster or from'
      ' before a restore cannot be used.'
    );
  END IF;
  RETURN QUERY
  WITH uncovered AS MATERIALIZED (
    SELECT 'CLIENT_CERT' AS credential, c.cert_fingerprint_sha256 AS hash, c.revocation_no,
           c.revoked_at, c.recorded_at, c.expires_at, c.reason_code, c.revoked_by, c.db_user,
           c.xact_id, c.xmin::text::bigint AS stored_by
    FROM orchestration.revoked_client_certs c
    WHERE c.xact_id >= coalesce(pg_snapshot_xmin(p_watermark)::text::bigint, 0)
      AND pg_visible_in_snapshot(c.xact_id::text::xid8, p_watermark) IS NOT TRUE
    UNION ALL
    SELECT 'TOKEN', t.token_hash, t.revocation_no,
           t.revoked_at, t.recorded_at, t.expires_at, t.reason_code, t.revoked_by, t.db_user,
           t.xact_id, t.xmin::text::bigint
    FROM orchestration.revoked_tokens t
    WHERE t.xact_id >= coalesce(pg_snapshot_xmin(p_watermark)::text::bigint, 0)
      AND pg_visible_in_snapshot(t.xact_id::text::xid8, p_watermark) IS NOT TRUE
  ), snapshot AS MATERIALIZED (
    SELECT pg_current_snapshot() AS taken,
           pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin,
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax
  ), durable AS (
    -- After a restore xact_id belongs to the old cluster, so this uses the id that stored the row. Only
    -- 32 bits of it are in xmin. In a savepoint xmin is greater than xact_id.
    SELECT greatest(
             3,
             pg_snapshot_xmax(p_watermark)::text::bigint,
             max(stored.id) FILTER (WHERE stored.id < (SELECT s.xmax FROM snapshot s)) + 1
           ) AS xmax
    FROM uncovered t
    CROSS JOIN LATERAL (
      SELECT t.xact_id + ((t.stored_by - t.xact_id) & 4294967295) AS id
    ) stored
  ), cut AS (
    -- A transaction that has written sees its own rows, but its snapshot does not list its id. The
    -- snapshot of a standby lists no ids. In both cases the cut comes before all running transactions.
    SELECT s.taken, s.xmin,
           least(
             d.xmax,
             CASE
               WHEN pg_is_in_recovery() OR pg_current_xact_id_if_assigned() IS NOT NULL THEN s.xmin
               ELSE s.xmax
             END
           ) AS xmax
    FROM snapshot s
    CROSS JOIN durable d
  ), next AS MATERIALIZED (
    SELECT format(
             '%s:%s:%s', least(c.xmin, c.xmax), c.xmax,
             (
               SELECT string_agg(x.id::text, ',' ORDER BY x.id)
               FROM pg_snapshot_xip(c.taken) AS x (id)
               WHERE x.id::text::bigint < c.xmax
             )
           )::pg_snapshot AS watermark
    FROM cut c
  )
  SELECT n.watermark, t.credential, t.hash, t.revocation_no, t.revoked_at, t.recorded_at,
         t.expires_at, t.reason_code, t.revoked_by, t.db_user, t.xact_id
  FROM next n
  LEFT JOIN uncovered t ON true
  ORDER BY t.recorded_at, t.hash, t.revocation_no;
END
$$;

ALTER FUNCTION orchestration.revocations_since OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.revocations_since FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.revocations_since
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor;
