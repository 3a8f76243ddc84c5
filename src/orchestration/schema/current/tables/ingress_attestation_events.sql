CREATE TABLE orchestration.ingress_attestation_events (
  attestation_id uuid NOT NULL,
  event text NOT NULL,
  caller_identity text NOT NULL,
  terminal_status text,
  occurred_at timestamptz NOT NULL,
  recorded_by text DEFAULT SESSION_USER NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_ingress_attestation_events_event CHECK (
    event IN ('EXECUTION_STARTED', 'EXECUTION_COMPLETED')
  ),
  CONSTRAINT ck_ingress_attestation_events_terminal_status CHECK (
    (event = 'EXECUTION_COMPLETED') = (terminal_status IS NOT NULL)
    AND terminal_status IN ('SUCCESS', 'FAILED', 'REPAIRED')
  ),
  CONSTRAINT ck_ingress_attestation_events_recorded_by CHECK (
    octet_length(recorded_by) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_ingress_attestation_events_years CHECK (
    extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT fk_ingress_attestation_events_attestation_id FOREIGN KEY (attestation_id)
    REFERENCES orchestration.ingress_attestations (id),
  CONSTRAINT pk_ingress_attestation_events PRIMARY KEY (attestation_id, event)
);

CREATE INDEX ix_ingress_attestation_events_xact_id
ON orchestration.ingress_attestation_events USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.ingress_attestation_events
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attestation_event();
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.ingress_attestation_events
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-ATT-001', 'P0001', 'attestation_id', 'event');
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.ingress_attestation_events
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-001', 'P0001');
ALTER TABLE orchestration.ingress_attestation_events ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.ingress_attestation_events OWNER TO symphony_owner;
GRANT SELECT ON orchestration.ingress_attestation_events
TO symphony_control, symphony_readonly, symphony_auditor;
