CREATE TABLE orchestration.ingress_attestations (
  id uuid NOT NULL,
  caller_identity text NOT NULL,
  chain_seq bigint NOT NULL,
  idempotency_key text NOT NULL,
  payload_hash text NOT NULL,
  signature_hash text,
  client_cert_fingerprint_sha256 text,
  token_hash text,
  policy_version_id text NOT NULL,
  execution_started boolean DEFAULT false NOT NULL,
  execution_completed boolean DEFAULT false NOT NULL,
  terminal_status text,
  attested_at timestamptz NOT NULL,
  prev_hash text NOT NULL,
  record_hash text NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_ingress_attestations_caller_identity CHECK (
    octet_length(caller_identity) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_ingress_attestations_chain_seq CHECK (chain_seq >= 1),
  CONSTRAINT ck_ingress_attestations_idempotency_key CHECK (
    octet_length(idempotency_key) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_ingress_attestations_payload_hash CHECK (
    octet_length(payload_hash) = 64 AND payload_hash ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_ingress_attestations_signature_hash CHECK (
    octet_length(signature_hash) = 64 AND signature_hash ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_ingress_attestations_client_cert_fingerprint_sha256 CHECK (
    octet_length(client_cert_fingerprint_sha256) = 64
    AND client_cert_fingerprint_sha256 ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_ingress_attestations_token_hash CHECK (
    octet_length(token_hash) = 64 AND token_hash ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_ingress_attestations_record_hash CHECK (
    octet_length(record_hash) = 64 AND record_hash ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_ingress_attestations_prev_hash CHECK ((chain_seq = 1) = (prev_hash = '')),
  CONSTRAINT ck_ingress_attestations_execution CHECK (
    execution_started OR NOT execution_completed
  ),
  CONSTRAINT ck_ingress_attestations_terminal_status CHECK (
    execution_completed = (terminal_status IS NOT NULL)
    AND terminal_status IN ('SUCCESS', 'FAILED', 'REPAIRED')
  ),
  CONSTRAINT ck_ingress_attestations_years CHECK (
    extract(year FROM attested_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT pk_ingress_attestations PRIMARY KEY (id),
  CONSTRAINT uq_ingress_attestations_caller_identity_chain_seq UNIQUE (caller_identity, chain_seq),
  CONSTRAINT uq_ingress_attestations_caller_identity_prev_hash UNIQUE (caller_identity, prev_hash),
  CONSTRAINT uq_ingress_attestations_caller_identity_idempotency_key
    UNIQUE (caller_identity, idempotency_key),
  -- The foreign key of instructions references both columns.
  CONSTRAINT uq_ingress_attestations_id_policy_version_id UNIQUE (id, policy_version_id)
);

CREATE INDEX ix_ingress_attestations_xact_id
ON orchestration.ingress_attestations USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestations
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation();
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER heads AFTER INSERT ON orchestration.ingress_attestations
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_attestation_heads();

CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.ingress_attestations
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed('INGEST');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER kill_switch;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.ingress_attestations
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-001', 'P0001', 'id', 'caller_identity', 'chain_seq');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestations
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001');
ALTER TABLE orchestration.ingress_attestations ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.ingress_attestations OWNER TO symphony_owner;
GRANT SELECT ON orchestration.ingress_attestations
TO symphony_control, symphony_readonly, symphony_auditor;
