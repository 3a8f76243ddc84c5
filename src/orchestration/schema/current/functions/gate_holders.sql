CREATE FUNCTION orchestration.gate_holders()
RETURNS TABLE (
  gate text,
  mode text,
  granted boolean,
  pid integer,
  login text,
  application_name text,
  client_addr inet,
  state text,
  transaction_started_at timestamptz,
  waiting_since timestamptz,
  prepared_gid text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because it is one query over five catalogue views.
-- Not SECURITY DEFINER: pg_stat_activity shows client_addr, state and transaction_started_at of
-- another login only to a caller who has pg_read_all_stats, which symphony_owner does not have.
BEGIN
  RETURN QUERY
  WITH holder AS (
    -- A transaction can hold a gate in several modes. Show the mode that it waits for, otherwise the
    -- strongest one that it holds.
    SELECT DISTINCT ON (c.relname, l.virtualtransaction)
           c.relname::text AS gate,
           l.mode,
           -- A session that waits for a row waits for a lock on the other transaction or on the tuple.
           l.granted AND w.pid IS NULL AS granted,
           l.pid,
           coalesce(l.waitstart, w.waitstart) AS waiting_since,
           l.virtualtransaction
    FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    LEFT JOIN pg_locks w
      ON NOT w.granted
     AND w.pid = l.pid
     AND c.relname = 'audit_log_head'
     AND (w.locktype = 'transactionid' OR w.locktype = 'tuple' AND w.relation = c.oid)
    WHERE l.locktype = 'relation'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.mode <> 'AccessShareLock'
      AND c.relnamespace = 'orchestration'::regnamespace
      AND c.relname IN ('kill_switch_gate', 'policy_gate', 'revocation_gate', 'audit_log_head')
    ORDER BY c.relname, l.virtualtransaction, l.granted,
             array_position(
               ARRAY['AccessExclusiveLock', 'ExclusiveLock', 'RowExclusiveLock', 'RowShareLock'],
               l.mode
             )
  )
  SELECT h.gate,
         h.mode,
         h.granted,
         h.pid,
         coalesce(a.usename, p.owner)::text,
         a.application_name,
         a.client_addr,
         a.state,
         coalesce(a.xact_start, p.prepared),
         h.waiting_since,
         p.gid
  FROM holder h
  LEFT JOIN pg_stat_activity a ON a.pid = h.pid
  -- A prepared transaction has no backend. It is found by the lock on its own transaction id.
  LEFT JOIN (
    pg_prepared_xacts p
    JOIN pg_locks x
      ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.granted
  ) ON h.pid IS NULL AND x.virtualtransaction = h.virtualtransaction
  ORDER BY h.gate, h.granted DESC, coalesce(a.xact_start, p.prepared), h.waiting_since, h.pid;
END
$$;

ALTER FUNCTION orchestration.gate_holders OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.gate_holders FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.gate_holders
TO symphony_control, symphony_readonly, symphony_auditor;
