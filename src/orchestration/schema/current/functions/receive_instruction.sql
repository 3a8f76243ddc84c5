CREATE OR REPLACE FUNCTION orchestration.receive_instruction(p_instructions jsonb)
 RETURNS SETOF orchestration.instruction_result
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET enable_seqscan TO 'off'
AS $function$
DECLARE
  v_other record;
  v_new uuid[];
  v_new_ids jsonb;
  v_replayed boolean[];
BEGIN
  IF jsonb_typeof(p_instructions) IS DISTINCT FROM 'array'
    OR jsonb_array_length(p_instructions) > 10000 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_instructions is an array of 0 to 10,000 objects',
      'instructions', '{}', 'Send a batch in parts.'
    );
  END IF;
  PERFORM orchestration.share_kill_switch_gate();
  -- In order of the key: batches that share keys wait for each other, never in a circle.
  WITH entered AS (
  INSERT INTO orchestration.instructions (
    participant_id, idempotency_key, instruction_type, end_to_end_id, uetr, value_date,
    amount_minor, currency, debtor_account, creditor_account, payload, attestation_id,
    policy_version_id
  )
  SELECT r.participant_id, r.idempotency_key, r.instruction_type, r.end_to_end_id, r.uetr,
         r.value_date, r.amount_minor, r.currency, r.debtor_account, r.creditor_account, r.payload,
         r.attestation_id, r.policy_version_id
  FROM ROWS FROM (jsonb_to_recordset(p_instructions) AS (
    participant_id text, idempotency_key text, instruction_type text, end_to_end_id text,
    uetr uuid, value_date date, amount_minor bigint, currency text, debtor_account text,
    creditor_account text, payload jsonb, attestation_id uuid, policy_version_id text
  )) WITH ORDINALITY AS r (
    participant_id, idempotency_key, instruction_type, end_to_end_id,
    uetr, value_date, amount_minor, currency, debtor_account,
    creditor_account, payload, attestation_id, policy_version_id, ord
  )
  ORDER BY r.participant_id, r.idempotency_key, r.ord
  ON CONFLICT (participant_id, idempotency_key) DO NOTHING
  RETURNING id
  )
  SELECT array_agg(e.id) INTO v_new FROM entered e;

  -- Who asked and under which policy was judged with the first: the rest is the content.
  SELECT i.id, i.participant_id, i.idempotency_key
  INTO v_other
  FROM ROWS FROM (jsonb_to_recordset(p_instructions) AS (
    participant_id text, idempotency_key text, instruction_type text, end_to_end_id text,
    uetr uuid, value_date date, amount_minor bigint, currency text, debtor_account text,
    creditor_account text, payload jsonb
  )) WITH ORDINALITY AS r (
    participant_id, idempotency_key, instruction_type, end_to_end_id,
    uetr, value_date, amount_minor, currency, debtor_account,
    creditor_account, payload, ord
  )
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
  ORDER BY r.ord
  LIMIT 1;
  IF FOUND THEN
    PERFORM orchestration.raise_invariant(
      'INV-INS-008', 'P7402', 'the idempotency key was used with other content', 'instructions',
      jsonb_build_object('id', v_other.id, 'participant_id', v_other.participant_id,
        'idempotency_key', v_other.idempotency_key),
      'Use a new idempotency key for new content.', 'idempotency_key'
    );
  END IF;
  IF cardinality(v_new) < jsonb_array_length(p_instructions) THEN
    -- Some are new and some are not. A key that comes twice is new where it comes first.
    SELECT jsonb_object_agg(n.id, NULL) INTO v_new_ids FROM unnest(v_new) AS n (id);
    SELECT array_agg(f.replayed ORDER BY f.ord)
    INTO v_replayed
    FROM (
      SELECT r.ord,
             NOT v_new_ids ? i.id::text
               OR row_number() OVER (PARTITION BY i.id ORDER BY r.ord) > 1 AS replayed
      FROM ROWS FROM (jsonb_to_recordset(p_instructions) AS (
        participant_id text, idempotency_key text
      )) WITH ORDINALITY AS r (participant_id, idempotency_key, ord)
      CROSS JOIN LATERAL (
        SELECT i.id
        FROM orchestration.instructions i
        WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
        OFFSET 0
      ) i
    ) f;
  END IF;
  RETURN QUERY
  SELECT i.*, coalesce(v_replayed[r.ord], v_new IS NULL)
  FROM ROWS FROM (jsonb_to_recordset(p_instructions) AS (
    participant_id text, idempotency_key text
  )) WITH ORDINALITY AS r (participant_id, idempotency_key, ord)
  CROSS JOIN LATERAL (
    SELECT i.*
    FROM orchestration.instructions i
    WHERE i.participant_id = r.participant_id AND i.idempotency_key = r.idempotency_key
    OFFSET 0
  ) i
  ORDER BY r.ord;
END
$function$;
-- owner: symphony_owner
