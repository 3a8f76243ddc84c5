CREATE FUNCTION orchestration.receive_instruction(p_instructions jsonb)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET enable_seqscan = off
AS $$
-- enable_seqscan is off because the session keeps the first plan. A plan that was made while a
-- table was empty would still scan the whole table after it has grown.
-- The function is long because it checks every element of the batch before it takes a lock.
DECLARE
  v_instructions orchestration.new_instruction[];
  v_bad record;
  v_other record;
  v_new uuid[];
  v_new_ids jsonb;
  v_replayed boolean[];
BEGIN
  IF jsonb_typeof(p_instructions) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_instructions) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_instructions must be an array of 0 to 10,000 objects',
      'instructions', '{}', 'Split the batch: at most 10,000 per call.'
    );
  END IF;
  IF pg_column_size(p_instructions) > 67108864 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_instructions must be at most 64 MiB',
      'instructions', '{}', 'Split the batch.'
    );
  END IF;
  -- This check comes before any lock, and before the CHECK constraints because their DETAIL shows
  -- the row. The block writes nothing, so its subtransaction gets no id.
  BEGIN
    v_instructions := ARRAY(
      SELECT r FROM jsonb_populate_recordset(NULL::orchestration.new_instruction, p_instructions) AS r
    );
    SELECT t.ordinality, t.missing, t.malformed
    INTO v_bad
    FROM (
      SELECT r.ordinality,
             CASE
               WHEN r.participant_id IS NULL THEN 'participant_id'
               WHEN r.idempotency_key IS NULL THEN 'idempotency_key'
               WHEN r.instruction_type IS NULL THEN 'instruction_type'
               WHEN r.end_to_end_id IS NULL THEN 'end_to_end_id'
               WHEN r.amount_minor IS NULL THEN 'amount_minor'
               WHEN r.currency IS NULL THEN 'currency'
               WHEN r.debtor_account IS NULL THEN 'debtor_account'
               WHEN r.creditor_account IS NULL THEN 'creditor_account'
               WHEN r.payload IS NULL THEN 'payload'
               WHEN r.attestation_id IS NULL THEN 'attestation_id'
               WHEN r.policy_version_id IS NULL THEN 'policy_version_id'
             END AS missing,
             CASE
               WHEN octet_length(r.participant_id) NOT BETWEEN 1 AND 1000 THEN 'participant_id'
               WHEN octet_length(r.idempotency_key) NOT BETWEEN 1 AND 1000 THEN 'idempotency_key'
               WHEN octet_length(r.instruction_type) NOT BETWEEN 1 AND 1000 THEN 'instruction_type'
               WHEN octet_length(r.end_to_end_id) NOT BETWEEN 1 AND 1000 THEN 'end_to_end_id'
               WHEN extract(year FROM r.value_date) NOT BETWEEN 1 AND 9998 THEN 'value_date'
               WHEN r.amount_minor <= 0 THEN 'amount_minor'
               WHEN octet_length(r.currency) <> 3 OR r.currency !~ '^[A-Z]*$' THEN 'currency'
               WHEN octet_length(r.debtor_account) NOT BETWEEN 1 AND 1000 THEN 'debtor_account'
               WHEN octet_length(r.creditor_account) NOT BETWEEN 1 AND 1000 THEN 'creditor_account'
               WHEN octet_length(r.policy_version_id) > 1000 THEN 'policy_version_id'
               WHEN NOT orchestration.is_storable_payload(r.payload) THEN 'payload'
             END AS malformed
      FROM unnest(v_instructions) WITH ORDINALITY AS r
    ) t
    WHERE t.missing IS NOT NULL OR t.malformed IS NOT NULL
    ORDER BY t.ordinality
    LIMIT 1;
  EXCEPTION
    WHEN data_exception THEN
      PERFORM orchestration.refuse_unreadable('instructions', SQLSTATE, SQLERRM);
  END;
  IF v_bad.ordinality IS NOT NULL THEN
    PERFORM orchestration.refuse_element(
      'instructions', v_bad.ordinality, v_bad.missing, v_bad.malformed
    );
  END IF;
  PERFORM orchestration.share_gate('kill_switch_gate');
  -- Insert in the order of the keys, so that batches that share keys wait for each other without a
  -- deadlock.
  WITH entered AS (
  INSERT INTO orchestration.instructions (
    participant_id, idempotency_key, instruction_type, end_to_end_id, uetr, value_date,
    amount_minor, currency, debtor_account, creditor_account, payload, attestation_id,
    policy_version_id
  )
  SELECT r.participant_id, r.idempotency_key, r.instruction_type, r.end_to_end_id, r.uetr,
         r.value_date, r.amount_minor, r.currency, r.debtor_account, r.creditor_account, r.payload,
         r.attestation_id, r.policy_version_id
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  ORDER BY r.participant_id, r.idempotency_key, r.ordinality
  ON CONFLICT (participant_id, idempotency_key) DO NOTHING
  RETURNING id
  )
  SELECT array_agg(e.id) INTO v_new FROM entered e;

  -- The attestation and the policy version were checked with the first request. All other columns
  -- are the content, which a replay must repeat.
  SELECT i.id, i.participant_id, i.idempotency_key
  INTO v_other
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.instructions i
    WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
    OFFSET 0
  ) i
  WHERE (i.instruction_type, i.end_to_end_id, i.uetr, i.value_date, i.amount_minor, i.currency,
      i.debtor_account, i.creditor_account, i.payload::text)
    IS DISTINCT FROM (r.instruction_type, r.end_to_end_id, r.uetr, r.value_date, r.amount_minor,
      r.currency, r.debtor_account, r.creditor_account, r.payload::text)
  ORDER BY r.ordinality
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-008', 'P7402', 'the idempotency key was used with different content', 'instructions',
      jsonb_build_object('id', v_other.id, 'participant_id', v_other.participant_id,
        'idempotency_key', v_other.idempotency_key),
      'Use a new idempotency key for new content.', 'idempotency_key'
    );
  END IF;
  IF cardinality(v_new) < jsonb_array_length(p_instructions) THEN
    -- Some elements are new and some are not. If a key occurs twice, its first element is new.
    SELECT jsonb_object_agg(n.id, NULL) INTO v_new_ids FROM unnest(v_new) AS n (id);
    SELECT array_agg(f.replayed ORDER BY f.ordinality)
    INTO v_replayed
    FROM (
      SELECT r.ordinality,
             NOT v_new_ids ? i.id::text
               OR row_number() OVER (PARTITION BY i.id ORDER BY r.ordinality) > 1 AS replayed
      FROM unnest(v_instructions) WITH ORDINALITY AS r
      CROSS JOIN LATERAL (
        SELECT i.id
        FROM orchestration.instructions i
        WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
        OFFSET 0
      ) i
    ) f;
  END IF;
  RETURN QUERY
  SELECT i.*, coalesce(v_replayed[r.ordinality], v_new IS NULL)
  FROM unnest(v_instructions) WITH ORDINALITY AS r
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.instructions i
    WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
    OFFSET 0
  ) i
  ORDER BY r.ordinality;
END
$$;

ALTER FUNCTION orchestration.receive_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.receive_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.receive_instruction TO symphony_ingest;
