CREATE TABLE orchestration.ingress_attestation_heads (
  caller_identity text NOT NULL,
  chain_seq bigint DEFAULT 0 NOT NULL,
  record_hash text DEFAULT '' NOT NULL,
  CONSTRAINT ck_ingress_attestation_heads_caller_identity CHECK (
    octet_length(caller_identity) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_ingress_attestation_heads_chain_seq CHECK (chain_seq >= 0),
  CONSTRAINT pk_ingress_attestation_heads PRIMARY KEY (caller_identity)
)
-- Every append updates its caller's head. Free space on the page lets that be a HOT update.
WITH (fillfactor = 50);

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.ingress_attestation_heads
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-005', 'P0001', 'caller_identity', 'chain_seq');
ALTER TABLE orchestration.ingress_attestation_heads ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_heads
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-005', 'P0001');
ALTER TABLE orchestration.ingress_attestation_heads ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.ingress_attestation_heads OWNER TO symphony_owner;
GRANT SELECT ON orchestration.ingress_attestation_heads TO symphony_auditor;
