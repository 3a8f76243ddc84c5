CREATE TABLE orchestration.payment_outbox_late_results (
  outbox_id uuid NOT NULL,
  result_no integer NOT NULL,
  attempt_no integer NOT NULL,
  source text NOT NULL,
  outcome text NOT NULL,
  rail_reference text,
  reason text,
  lease_token uuid,
  recorded_by text DEFAULT SESSION_USER NOT NULL,
  recorded_at timestamptz NOT NULL,
  instruction_version integer NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_payment_outbox_late_results_result_no CHECK (result_no >= 1),
  CONSTRAINT ck_payment_outbox_late_results_source CHECK (
    CASE source
      WHEN 'WORKER' THEN lease_token IS NOT NULL AND reason IS NULL
      WHEN 'RECONCILIATION' THEN lease_token IS NULL AND reason IS NOT NULL
      ELSE false
    END
  ),
  CONSTRAINT ck_payment_outbox_late_results_outcome CHECK (
    outcome IN ('SENT', 'REJECTED', 'NOT_SENT')
  ),
  CONSTRAINT ck_payment_outbox_late_results_rail_reference CHECK (
    octet_length(rail_reference) >= 1 AND octet_length(rail_reference) <= 1000
  ),
  CONSTRAINT ck_payment_outbox_late_results_reason CHECK (
    octet_length(reason) >= 1 AND octet_length(reason) <= 4000
  ),
  CONSTRAINT ck_payment_outbox_late_results_recorded_by CHECK (
    octet_length(recorded_by) >= 1 AND octet_length(recorded_by) <= 1000
  ),
  CONSTRAINT ck_payment_outbox_late_results_years CHECK (
    extract(year FROM recorded_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT pk_payment_outbox_late_results PRIMARY KEY (outbox_id, result_no)
);

CREATE INDEX ix_payment_outbox_late_results_xact_id
ON orchestration.payment_outbox_late_results USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_late_result();
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.count_unresolved();

CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_late_results
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('result_no');

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_late_results
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'outbox_id', 'result_no');
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_late_results
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_late_results ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.payment_outbox_late_results OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_late_results
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
