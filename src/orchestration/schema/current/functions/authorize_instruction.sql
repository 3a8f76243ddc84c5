CREATE FUNCTION orchestration.authorize_instruction(p_id uuid, p_version integer)
RETURNS SETOF orchestration.instruction_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_instruction orchestration.instruction_result;
  v_cert text;
  v_token text;
BEGIN
  PERFORM orchestration.share_gate('kill_switch_gate');
  PERFORM orchestration.share_gate('policy_gate');
  PERFORM orchestration.share_gate('revocation_gate');
  SELECT l.* INTO v_instruction
  FROM orchestration.lock_instruction(p_id, p_version, 'AUTHORIZED', NULL) l;
  IF v_instruction.replayed THEN
    -- The first call has checked the conditions below.
    RETURN NEXT v_instruction;
    RETURN;
  END IF;
  IF v_instruction.state = 'RECEIVED' THEN
    IF v_instruction.db_user = SESSION_USER THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-007', 'P7405', 'the login that received the instruction cannot authorize it',
        'instructions', jsonb_build_object('id', p_id, 'db_user', v_instruction.db_user),
        'Authorize it with another login.', 'db_user'
      );
    END IF;
    IF NOT EXISTS (
      SELECT FROM orchestration.accepted_policy_versions a
      WHERE a.id = v_instruction.policy_version_id
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7105',
        format('policy version %s is no longer accepted', v_instruction.policy_version_id),
        'policy_versions',
        jsonb_build_object('id', v_instruction.policy_version_id, 'instruction_id', p_id),
        'Fail the instruction. Receive it again under a version that accepted_policy_versions lists.',
        'id'
      );
    END IF;
    SELECT a.client_cert_fingerprint_sha256, a.token_hash
    INTO v_cert, v_token
    FROM orchestration.ingress_attestations a
    WHERE a.id = v_instruction.attestation_id;
    IF EXISTS (
      SELECT FROM orchestration.revoked_client_certs_in_force c
      WHERE c.cert_fingerprint_sha256 = v_cert
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7202', 'the client certificate of the attestation is revoked',
        'revoked_client_certs',
        jsonb_build_object('credential', 'CLIENT_CERT', 'instruction_id', p_id),
        'Fail the instruction. Attest the request again with another certificate.',
        'cert_fingerprint_sha256'
      );
    END IF;
    IF EXISTS (
      SELECT FROM orchestration.revoked_tokens_in_force t WHERE t.token_hash = v_token
    ) THEN
      PERFORM orchestration.raise_invariant(
        'INV-INS-010', 'P7202', 'the token of the attestation is revoked', 'revoked_tokens',
        jsonb_build_object('credential', 'TOKEN', 'instruction_id', p_id),
        'Fail the instruction. Attest the request again with another token.', 'token_hash'
      );
    END IF;
  END IF;
  RETURN QUERY
  UPDATE orchestration.instructions i SET state = 'AUTHORIZED' WHERE i.id = p_id
  RETURNING i.*, false;
END
$$;

ALTER FUNCTION orchestration.authorize_instruction OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.authorize_instruction FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.authorize_instruction TO symphony_executor;
