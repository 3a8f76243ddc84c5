CREATE FUNCTION orchestration.verify_attestation_chain(p_caller_identity text)
RETURNS TABLE (
  ok boolean,
  records bigint,
  break_chain_seq bigint,
  break_attestation_id uuid,
  break_reason text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because all kinds of break are found by one query over one snapshot.
  WITH chain AS (
    SELECT a AS record,
           row_number() OVER w AS expected_seq,
           lag(a.record_hash, 1, '') OVER w AS expected_prev,
           lag(a.attested_at) OVER w AS previous_attested_at
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = p_caller_identity
    WINDOW w AS (ORDER BY a.chain_seq)
  ), checked AS (
    SELECT (c.record).chain_seq,
           (c.record).id,
           (c.record).record_hash,
           CASE
             WHEN (c.record).chain_seq <> c.expected_seq
               THEN 'records before this one are missing'
             WHEN (c.record).prev_hash <> c.expected_prev
               THEN 'prev_hash is not the record_hash of the row before'
             WHEN (c.record).record_hash <> orchestration.attestation_record_hash(c.record)
               THEN 'record_hash is not the hash of the record'
             WHEN (c.record).attested_at < c.previous_attested_at
               THEN 'attested_at is earlier than in the record before'
           END AS reason
    FROM chain c
  ), breaks AS (
    SELECT c.chain_seq, c.id, c.reason FROM checked c WHERE c.reason IS NOT NULL
    UNION ALL
    SELECT h.chain_seq, NULL,
           CASE WHEN l.chain_seq = h.chain_seq
             THEN 'the head has a different record_hash'
             ELSE 'the newest records are missing: the head is ahead'
           END
    FROM orchestration.ingress_attestation_heads h
    LEFT JOIN LATERAL (
      SELECT c.chain_seq, c.record_hash FROM checked c ORDER BY c.chain_seq DESC LIMIT 1
    ) l ON true
    WHERE h.caller_identity = p_caller_identity
      AND (h.chain_seq > coalesce(l.chain_seq, 0)
        OR h.chain_seq = l.chain_seq AND h.record_hash <> l.record_hash)
    UNION ALL
    SELECT NULL, e.attestation_id, 'an event has no attestation of the same caller'
    FROM orchestration.ingress_attestation_events e
    WHERE e.caller_identity = p_caller_identity
      AND NOT EXISTS (
        SELECT FROM orchestration.ingress_attestations a
        WHERE a.id = e.attestation_id AND a.caller_identity = e.caller_identity
      )
    UNION ALL
    SELECT a.chain_seq, a.id, 'EXECUTION_COMPLETED without EXECUTION_STARTED'
    FROM orchestration.ingress_attestation_events e
    JOIN orchestration.ingress_attestations a ON a.id = e.attestation_id
    WHERE a.caller_identity = p_caller_identity
      AND e.event = 'EXECUTION_COMPLETED'
      AND NOT a.execution_started
      AND NOT EXISTS (
        SELECT FROM orchestration.ingress_attestation_events s
        WHERE s.attestation_id = e.attestation_id AND s.event = 'EXECUTION_STARTED'
      )
    UNION ALL
    SELECT a.chain_seq, a.id, 'the policy version does not exist'
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = p_caller_identity
      AND NOT EXISTS (
        SELECT FROM orchestration.policy_versions p WHERE p.id = a.policy_version_id)
    UNION ALL
    SELECT NULL, NULL, 'p_caller_identity is null'
    WHERE p_caller_identity IS NULL
  )
  SELECT b.reason IS NULL, (SELECT count(*) FROM checked), b.chain_seq, b.id, b.reason
  FROM (SELECT) once
  LEFT JOIN LATERAL (SELECT * FROM breaks ORDER BY chain_seq, id LIMIT 1) b ON true
$$;

ALTER FUNCTION orchestration.verify_attestation_chain OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_attestation_chain FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_attestation_chain
TO symphony_control, symphony_auditor;
