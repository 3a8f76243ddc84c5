CREATE FUNCTION orchestration.append_attestations(p_attestations jsonb)
RETURNS SETOF orchestration.ingress_attestation_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- OFFSET 0 stops the planner from flattening a look-up into a join whose plan, cached on an empty
-- table, would stay wrong for the session.
-- The function is long because it checks every element of the batch before it takes a lock, and
-- names the reason of each refusal.
DECLARE
  v_attestations orchestration.new_attestation[];
  v_bad record;
  v_new uuid[];
  v_new_ids jsonb;
  v_replayed boolean[];
BEGIN
  IF jsonb_typeof(p_attestations) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_attestations) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_attestations must be an array of 0 to 10,000 objects',
      'ingress_attestations', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_attestations) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_attestations must be at most 64 MiB',
      'ingress_attestations', '{}', 'Split the batch.'
    );
  END IF;
  v_attestations := ARRAY(
    SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_attestation, p_attestations) AS r
  );
  -- This check comes before the CHECK constraints because their DETAIL shows the row, and a value
  -- that is not a hash can be the credential itself.
  SELECT h.ordinality, h.malformed
  INTO v_bad
  FROM (
    SELECT r.ordinality,
           CASE
             WHEN octet_length(r.payload_hash) <> 64 OR r.payload_hash !~ '^[0-9a-f]*$'
               THEN 'payload_hash'
             WHEN octet_length(r.signature_hash) <> 64 OR r.signature_hash !~ '^[0-9a-f]*$'
               THEN 'signature_hash'
             WHEN octet_length(r.client_cert_fingerprint_sha256) <> 64
               OR r.client_cert_fingerprint_sha256 !~ '^[0-9a-f]*$'
               THEN 'client_cert_fingerprint_sha256'
             WHEN octet_length(r.token_hash) <> 64 OR r.token_hash !~ '^[0-9a-f]*$'
               THEN 'token_hash'
           END AS malformed
    FROM unnest(v_attestations) WITH ORDINALITY AS r
  ) h
  WHERE h.malformed IS NOT NULL
  ORDER BY h.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', format('%s must be a SHA-256 in lowercase hex', v_bad.malformed),
      'ingress_attestations',
      jsonb_build_object('ordinal', v_bad.ordinality, 'column', v_bad.malformed),
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.',
      v_bad.malformed
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row.
  SELECT t.ordinality, t.missing, t.malformed
  INTO v_bad
  FROM (
    SELECT r.ordinality,
           CASE
             WHEN r.caller_identity IS NULL THEN 'caller_identity'
             WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
             WHEN r.payload_hash IS NULL THEN 'payload_hash'
           END AS missing,
           CASE
             WHEN octet_length(r.caller_identity) NOT BETWEEN 1 AND 1000 THEN 'caller_identity'
             WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
             WHEN octet_length(r.policy_version_id) > 1000 THEN 'policy_version_id'
           END AS malformed
    FROM unnest(v_attestations) WITH ORDINALITY AS r
  ) t
  WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
  ORDER BY t.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.refuse_element(
      'ingress_attestations', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.share_gate('policy_gate');
  PERFORM orchestration.share_gate('revocation_gate');
  INSERT INTO orchestration.ingress_attestation_heads AS h (caller_identity)
  SELECT DISTINCT n.caller_identity
  FROM unnest(v_attestations) AS n
  ORDER BY n.caller_identity
  ON CONFLICT (caller_identity) DO UPDATE SET chain_seq = h.chain_seq;

  -- Check only new attestations. A replay returns the record that was accepted before.
  SELECT n.caller_identity, n.idempotency_key, n.policy_version_id,
         n.accepted, n.cert_revoked, n.token_revoked
  INTO v_bad
  FROM (
    SELECT r.*,
           EXISTS (
             SELECT FROM orchestration.accepted_policy_versions v
             WHERE v.id = r.policy_version_id
               -- A GRACE that had expired at the caller's newest attestation stays expired, even
               -- if the clock has been set back since.
               AND (v.grace_expires_at IS NULL OR coalesce(v.grace_expires_at > (
                 SELECT a.attested_at
                 FROM orchestration.ingress_attestations a
                 WHERE a.caller_identity = r.caller_identity
                 ORDER BY a.chain_seq DESC
                 LIMIT 1
               ), true))
             OFFSET 0
           ) AS accepted,
           EXISTS (
             SELECT FROM orchestration.revoked_client_certs_in_force c
             WHERE c.cert_fingerprint_sha256 = r.client_cert_fingerprint_sha256
             OFFSET 0
           ) AS cert_revoked,
           EXISTS (
             SELECT FROM orchestration.revoked_tokens_in_force t
             WHERE t.token_hash = r.token_hash
             OFFSET 0
           ) AS token_revoked
    FROM unnest(v_attestations) WITH ORDINALITY AS r
    WHERE NOT EXISTS (
      SELECT FROM orchestration.ingress_attestations a
      WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
      OFFSET 0
    )
  ) n
  WHERE NOT n.accepted OR n.cert_revoked OR n.token_revoked
  ORDER BY n.ordinality
  LIMIT 1;
  IF FOUND THEN
    IF NOT v_bad.accepted THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-008', 'P7105',
        format('policy version %s is not accepted', coalesce(v_bad.policy_version_id, 'null')),
        'policy_versions',
        jsonb_build_object('id', v_bad.policy_version_id,
          'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
        'Use a policy version that accepted_policy_versions shows.', 'id'
      );
    END IF;
    IF v_bad.cert_revoked THEN
      PERFORM orchestration.raise_invariant(
        'INV-ATT-009', 'P7202', 'the client certificate is revoked', 'revoked_client_certs',
        jsonb_build_object('credential', 'CLIENT_CERT',
          'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
        'Have the client present another certificate.', 'cert_fingerprint_sha256'
      );
    END IF;
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the token is revoked', 'revoked_tokens',
      jsonb_build_object('credential', 'TOKEN',
        'caller_identity', v_bad.caller_identity, 'idempotency_key', v_bad.idempotency_key),
      'Have the caller obtain another token.', 'token_hash'
    );
  END IF;

  WITH entered AS (
  INSERT INTO orchestration.ingress_attestations (
    caller_identity, idempotency_key, payload_hash, signature_hash,
    client_cert_fingerprint_sha256, token_hash, policy_version_id
  )
  SELECT r.caller_identity, r.idempotency_key, r.payload_hash, r.signature_hash,
         r.client_cert_fingerprint_sha256, r.token_hash, r.policy_version_id
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  WHERE NOT EXISTS (
    SELECT FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  )
  ORDER BY r.ordinality
  ON CONFLICT (caller_identity, idempotency_key) DO NOTHING
  RETURNING id
  )
  SELECT array_agg(e.id) INTO v_new FROM entered e;

  SELECT a.id, a.caller_identity, a.idempotency_key
  INTO v_bad
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT a.id, a.caller_identity, a.idempotency_key, a.payload_hash
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  ) a
  WHERE a.payload_hash IS DISTINCT FROM r.payload_hash
  ORDER BY r.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-007', 'P7303', 'the idempotency key was attested with a different payload_hash',
      'ingress_attestations',
      jsonb_build_object('id', v_bad.id, 'caller_identity', v_bad.caller_identity,
        'idempotency_key', v_bad.idempotency_key),
      'Use a new idempotency key for new content.', 'idempotency_key'
    );
  END IF;
  IF cardinality(v_new) < jsonb_array_length(p_attestations) THEN
    -- Some elements are new and some are not. If a key occurs twice, its first element is new.
    SELECT jsonb_object_agg(n.id, NULL) INTO v_new_ids FROM unnest(v_new) AS n (id);
    SELECT array_agg(f.replayed ORDER BY f.ordinality)
    INTO v_replayed
    FROM (
      SELECT r.ordinality,
             NOT v_new_ids ? a.id::text
               OR row_number() OVER (PARTITION BY a.id ORDER BY r.ordinality) > 1 AS replayed
      FROM unnest(v_attestations) WITH ORDINALITY AS r
      CROSS JOIN LATERAL (
        SELECT a.id
        FROM orchestration.ingress_attestations a
        WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
        OFFSET 0
      ) a
    ) f;
  END IF;
  RETURN QUERY
  SELECT a.*, coalesce(v_replayed[r.ordinality], v_new IS NULL)
  FROM unnest(v_attestations) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT a.*
    FROM orchestration.ingress_attestations a
    WHERE a.caller_identity = r.caller_identity AND a.idempotency_key = r.idempotency_key
    OFFSET 0
  ) a
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.append_attestations OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.append_attestations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.append_attestations TO symphony_ingest;
