CREATE TABLE orchestration.payment_outbox_pending (
  outbox_id uuid NOT NULL,
  instruction_id uuid NOT NULL,
  participant_id text NOT NULL,
  sequence_id bigint NOT NULL,
  rail_type text NOT NULL,
  attempt_count integer DEFAULT 0 NOT NULL,
  next_attempt_at timestamptz DEFAULT clock_timestamp() NOT NULL,
  claimed_by text,
  lease_token uuid,
  lease_expires_at timestamptz,
  open boolean GENERATED ALWAYS AS (true) STORED NOT NULL,
  CONSTRAINT ck_payment_outbox_pending_attempt_count CHECK (attempt_count >= 0),
  CONSTRAINT ck_payment_outbox_pending_next_attempt_at CHECK (
    extract(year FROM next_attempt_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT ck_payment_outbox_pending_lease CHECK (
    num_nulls(claimed_by, lease_token, lease_expires_at) IN (0, 3)
    AND isfinite(lease_expires_at)
    AND octet_length(claimed_by) <= 1000
  ),
  -- The instruction of a pending item must be open, which means authorized and not ended.
  CONSTRAINT fk_payment_outbox_pending_participant_id_instruction_id_open
    FOREIGN KEY (participant_id, instruction_id, open)
    REFERENCES orchestration.instructions (participant_id, id, open),
  CONSTRAINT pk_payment_outbox_pending PRIMARY KEY (outbox_id)
)
-- A claim is a HOT update: no index covers the columns that it changes, and the page has free space
-- for a second version of each row, which is larger because of the lease.
WITH (fillfactor = 40);

CREATE INDEX ix_payment_outbox_pending_instruction_id
ON orchestration.payment_outbox_pending (instruction_id);
-- Items are claimed in this order. A claim changes neither column and stays a HOT update.
CREATE INDEX ix_payment_outbox_pending_next_attempt_at_outbox_id
ON orchestration.payment_outbox_pending (next_attempt_at, outbox_id);

CREATE TRIGGER guard_insert AFTER INSERT ON orchestration.payment_outbox_pending
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_insert();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_insert;

-- The columns are compared one by one, because a dump and restore would add parentheses to a row
-- comparison, and the restored schema would differ from the fingerprint.
CREATE TRIGGER guard_update BEFORE UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.outbox_id IS DISTINCT FROM NEW.outbox_id
  OR OLD.instruction_id IS DISTINCT FROM NEW.instruction_id
  OR OLD.participant_id IS DISTINCT FROM NEW.participant_id
  OR OLD.sequence_id IS DISTINCT FROM NEW.sequence_id
  OR OLD.rail_type IS DISTINCT FROM NEW.rail_type
  OR OLD.lease_token = NEW.lease_token
    AND (OLD.lease_expires_at, OLD.claimed_by)
      IS DISTINCT FROM (NEW.lease_expires_at, NEW.claimed_by)
  OR OLD.lease_token IS NOT NULL AND NEW.lease_token IS DISTINCT FROM OLD.lease_token
  OR NEW.attempt_count
    <> OLD.attempt_count + (OLD.lease_token IS NULL AND NEW.lease_token IS NOT NULL)::integer
)
EXECUTE FUNCTION orchestration.guard_outbox_pending_update();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_update;

CREATE TRIGGER guard_delete AFTER DELETE ON orchestration.payment_outbox_pending
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.guard_outbox_pending_delete();
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER guard_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_pending
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-OUT-009', 'P7006');
ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER no_truncate;

CREATE TRIGGER rescheduled AFTER UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.lease_token IS NULL
  AND NEW.lease_token IS NULL
  AND OLD.next_attempt_at <> NEW.next_attempt_at
)
EXECUTE FUNCTION orchestration.record_intervention('RESCHEDULE');

CREATE TRIGGER lease_expired AFTER UPDATE ON orchestration.payment_outbox_pending
FOR EACH ROW
WHEN (
  OLD.lease_token = NEW.lease_token
  AND OLD.lease_expires_at > NEW.lease_expires_at
  AND NEW.lease_expires_at <= clock_timestamp()
)
EXECUTE FUNCTION orchestration.record_intervention('EXPIRE_LEASE');

ALTER TABLE orchestration.payment_outbox_pending OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_pending
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
