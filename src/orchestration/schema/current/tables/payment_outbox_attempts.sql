CREATE TABLE orchestration.payment_outbox_attempts (
  outbox_id uuid NOT NULL,
  attempt_no integer NOT NULL,
  phase text NOT NULL,
  state text NOT NULL,
  outcome text,
  requested_state text,
  requested_error_code text,
  lease_token uuid NOT NULL,
  worker_id text NOT NULL,
  claimed_at timestamptz NOT NULL,
  completed_at timestamptz,
  rail_reference text,
  rail_code text,
  error_code text,
  error_message text,
  latency_ms integer,
  db_user text DEFAULT SESSION_USER NOT NULL,
  xact_id bigint DEFAULT pg_current_xact_id()::text::bigint NOT NULL,
  CONSTRAINT ck_payment_outbox_attempts_attempt_no CHECK (attempt_no >= 1),
  CONSTRAINT ck_payment_outbox_attempts_state CHECK (
    CASE phase
      WHEN 'OPEN' THEN state = 'DISPATCHING'
      WHEN 'CLOSE' THEN state IN ('DISPATCHED', 'RETRYABLE', 'FAILED', 'ZOMBIE_REQUEUE')
      ELSE false
    END
  ),
  CONSTRAINT ck_payment_outbox_attempts_outcome CHECK (
    CASE state
      WHEN 'FAILED' THEN outcome IS NOT NULL
      WHEN 'RETRYABLE' THEN true
      ELSE outcome IS NULL
    END
    AND outcome IN ('REJECTED', 'UNKNOWN', 'NOT_SENT')
  ),
  CONSTRAINT ck_payment_outbox_attempts_requested_state CHECK (
    CASE
      WHEN phase = 'OPEN' THEN requested_state IS NULL
      WHEN requested_state IS NULL THEN state IN ('FAILED', 'ZOMBIE_REQUEUE')
      WHEN requested_state = 'RETRYABLE' THEN state IN ('RETRYABLE', 'FAILED')
      WHEN requested_state IN ('DISPATCHED', 'FAILED') THEN state = requested_state
      ELSE false
    END
    AND (requested_state IS NOT NULL OR requested_error_code IS NULL)
  ),
  CONSTRAINT ck_payment_outbox_attempts_times CHECK (
    (phase = 'CLOSE') = (completed_at IS NOT NULL) AND isfinite(claimed_at)
  ),
  CONSTRAINT ck_payment_outbox_attempts_opening CHECK (
    phase = 'CLOSE'
    OR num_nonnulls(rail_reference, rail_code, error_code, error_message, latency_ms) = 0
  ),
  CONSTRAINT ck_payment_outbox_attempts_worker_id CHECK (
    octet_length(worker_id) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_payment_outbox_attempts_latency_ms CHECK (latency_ms >= 0),
  CONSTRAINT ck_payment_outbox_attempts_texts CHECK (
    octet_length(requested_error_code) <= 1000
    AND octet_length(rail_reference) <= 1000
    AND octet_length(rail_code) <= 1000
    AND octet_length(error_code) <= 1000
    AND octet_length(error_message) <= 4000
  ),
  CONSTRAINT pk_payment_outbox_attempts PRIMARY KEY (outbox_id, attempt_no, phase)
);

CREATE UNIQUE INDEX uq_payment_outbox_attempts_terminal
ON orchestration.payment_outbox_attempts (outbox_id)
WHERE state IN ('DISPATCHED', 'FAILED');
CREATE INDEX ix_payment_outbox_attempts_xact_id
ON orchestration.payment_outbox_attempts USING brin (xact_id);

CREATE TRIGGER guard AFTER INSERT ON orchestration.payment_outbox_attempts
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_attempts();
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER kill_switch AFTER INSERT ON orchestration.payment_outbox_attempts
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.block_execution_if_killed(
  'DISPATCH', 'OPENED', 'payment_outbox_pending');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER kill_switch;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_attempts
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-OUT-001', 'P0001', 'outbox_id', 'attempt_no', 'phase');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_attempts
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_attempts ENABLE ALWAYS TRIGGER no_truncate;

-- These are row triggers because their conditions are rarely true, and a row trigger whose
-- condition is false costs a claim or completion almost nothing.
CREATE TRIGGER unresolved AFTER INSERT ON orchestration.payment_outbox_attempts
FOR EACH ROW
WHEN (NEW.state = 'FAILED')
EXECUTE FUNCTION orchestration.count_unresolved();

CREATE TRIGGER cancelled AFTER INSERT ON orchestration.payment_outbox_attempts
FOR EACH ROW
WHEN (NEW.state = 'FAILED' AND NEW.error_code = 'CANCELLED' AND NEW.requested_state IS NULL)
EXECUTE FUNCTION orchestration.record_intervention('CANCEL');

ALTER TABLE orchestration.payment_outbox_attempts OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_attempts
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
