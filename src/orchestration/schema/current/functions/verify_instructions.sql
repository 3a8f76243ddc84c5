CREATE FUNCTION orchestration.verify_instructions()
RETURNS TABLE (finding text, instruction_id uuid, participant_id text, detail jsonb)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  SELECT 'HISTORY: status_history does not lead to the current state of the instruction',
         i.id, i.participant_id,
         jsonb_build_object('version', i.version, 'state', i.state, 'rows', h.rows,
           'last', h.last)
  FROM orchestration.instructions i
  CROSS JOIN LATERAL (
    SELECT count(*) AS rows,
           min(h.version) AS first,
           max(h.version) AS newest,
           (array_agg(h.to_state ORDER BY h.version DESC))[1] AS last,
           (array_agg(h.reason ORDER BY h.version DESC))[1] AS reason,
           (array_agg(h.db_user ORDER BY h.version))[1] AS received_by,
           count(*) FILTER (WHERE h.version > 1 AND h.from_state IS DISTINCT FROM h.before)
             AS leaps
    FROM (
      SELECT h.*, lag(h.to_state) OVER (ORDER BY h.version) AS before
      FROM orchestration.status_history h
      WHERE h.instruction_id = i.id
    ) h
  ) h
  WHERE (h.rows, h.first, h.newest, h.last, h.reason, h.received_by, h.leaps)
    IS DISTINCT FROM (i.version::bigint, 1, i.version, i.state, i.reason, i.db_user, 0::bigint)
  UNION ALL
  SELECT 'ORPHAN: the instruction of the status_history row does not exist',
         h.instruction_id, h.participant_id,
         jsonb_build_object('version', h.version, 'to_state', h.to_state)
  FROM orchestration.status_history h
  WHERE NOT EXISTS (
    SELECT FROM orchestration.instructions i
    WHERE (i.id, i.participant_id) = (h.instruction_id, h.participant_id))
  UNION ALL
  SELECT 'ORPHAN: the attestation of the instruction does not exist', i.id, i.participant_id,
         jsonb_build_object('attestation_id', i.attestation_id)
  FROM orchestration.instructions i
  WHERE NOT EXISTS (
    SELECT FROM orchestration.ingress_attestations a WHERE a.id = i.attestation_id)
  UNION ALL
  SELECT 'POLICY: the instruction and its attestation have different policy versions',
         i.id, i.participant_id,
         jsonb_build_object('attestation_id', i.attestation_id,
           'policy_version_id', i.policy_version_id, 'attested_under', a.policy_version_id)
  FROM orchestration.instructions i
  JOIN orchestration.ingress_attestations a ON a.id = i.attestation_id
  WHERE a.policy_version_id <> i.policy_version_id
  UNION ALL
  SELECT 'ORPHAN: the policy version of the instruction does not exist', i.id, i.participant_id,
         jsonb_build_object('policy_version_id', i.policy_version_id)
  FROM orchestration.instructions i
  WHERE NOT EXISTS (
    SELECT FROM orchestration.policy_versions p WHERE p.id = i.policy_version_id)
$$;

ALTER FUNCTION orchestration.verify_instructions OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.verify_instructions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.verify_instructions TO symphony_control, symphony_auditor;
