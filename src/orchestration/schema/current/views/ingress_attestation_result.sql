CREATE VIEW orchestration.ingress_attestation_result WITH (security_invoker=true) AS
 SELECT id,
    caller_identity,
    chain_seq,
    idempotency_key,
    payload_hash,
    signature_hash,
    client_cert_fingerprint_sha256,
    token_hash,
    policy_version_id,
    execution_started,
    execution_completed,
    terminal_status,
    attested_at,
    prev_hash,
    record_hash,
    db_user,
    xact_id,
    false AS replayed
   FROM orchestration.ingress_attestations i;
-- owner: symphony_owner
