CREATE TABLE orchestration.execution_attempts (
  instruction_id uuid NOT NULL,
  attempt_no integer NOT NULL,
  phase text NOT NULL,
  participant_id text NOT NULL,
  worker_id text NOT NULL,
  outcome text,
  error_code text,
  error_message text,
  occurred_at timestamptz NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_execution_attempts_attempt_no CHECK (attempt_no >= 1),
  CONSTRAINT ck_execution_attempts_worker_id CHECK (octet_length(worker_id) BETWEEN 1 AND 1000),
  CONSTRAINT ck_execution_attempts_outcome CHECK (
    CASE phase
      WHEN 'OPEN' THEN outcome IS NULL
      WHEN 'CLOSE' THEN outcome IS NOT NULL
      ELSE false
    END
    AND outcome IN ('SUCCEEDED', 'FAILED', 'ABANDONED')
  ),
  CONSTRAINT ck_execution_attempts_error CHECK (
    (num_nonnulls(error_code, error_message) = 0 OR coalesce(outcome <> 'SUCCEEDED', false))
    AND octet_length(error_code) >= 1
    AND octet_length(error_code) <= 1000
    AND octet_length(error_message) >= 1
    AND octet_length(error_message) <= 4000
  ),
  CONSTRAINT ck_execution_attempts_years CHECK (
    extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT fk_execution_attempts_participant_id_instruction_id
    FOREIGN KEY (participant_id, instruction_id)
    REFERENCES orchestration.instructions (participant_id, id),
  CONSTRAINT pk_execution_attempts PRIMARY KEY (instruction_id, attempt_no, phase)
);

CREATE INDEX ix_execution_attempts_xact_id
ON orchestration.execution_attempts USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.execution_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_attempt_log();
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.execution_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'instruction_id', 'attempt_no', 'phase');
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.execution_attempts
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.execution_attempts ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.execution_attempts OWNER TO symphony_owner;
GRANT SELECT ON orchestration.execution_attempts
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
