CREATE TABLE orchestration.payment_outbox_interventions (
  outbox_id uuid NOT NULL,
  intervention_no integer NOT NULL,
  action text NOT NULL,
  attempt_no integer,
  result_no integer,
  time_before timestamptz,
  time_after timestamptz,
  reason text,
  acted_by text DEFAULT SESSION_USER NOT NULL,
  acted_at timestamptz NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_payment_outbox_interventions_intervention_no CHECK (intervention_no >= 1),
  CONSTRAINT ck_payment_outbox_interventions_action CHECK (
    CASE action
      WHEN 'CANCEL'
        THEN attempt_no IS NOT NULL
          AND num_nonnulls(result_no, time_before, time_after) = 0
      WHEN 'RESCHEDULE'
        THEN num_nonnulls(attempt_no, result_no) = 0
          AND num_nulls(time_before, time_after) = 0
      WHEN 'EXPIRE_LEASE'
        THEN result_no IS NULL
          AND num_nulls(attempt_no, time_before, time_after) = 0
      WHEN 'CLOSE_CONTRADICTION'
        THEN result_no IS NOT NULL
          AND num_nonnulls(attempt_no, time_before, time_after) = 0
      ELSE false
    END
  ),
  CONSTRAINT ck_payment_outbox_interventions_reason CHECK (
    octet_length(reason) >= 1 AND octet_length(reason) <= 4000
  ),
  CONSTRAINT ck_payment_outbox_interventions_acted_by CHECK (
    octet_length(acted_by) >= 1 AND octet_length(acted_by) <= 1000
  ),
  CONSTRAINT ck_payment_outbox_interventions_years CHECK (
    extract(year FROM acted_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT pk_payment_outbox_interventions PRIMARY KEY (outbox_id, intervention_no)
);

CREATE UNIQUE INDEX uq_payment_outbox_interventions_closed
ON orchestration.payment_outbox_interventions (outbox_id, result_no)
WHERE action = 'CLOSE_CONTRADICTION';
CREATE INDEX ix_payment_outbox_interventions_xact_id
ON orchestration.payment_outbox_interventions USING brin (xact_id);

CREATE TRIGGER fill BEFORE INSERT ON orchestration.payment_outbox_interventions
FOR EACH ROW EXECUTE FUNCTION orchestration.fill_intervention();

CREATE TRIGGER audit AFTER INSERT ON orchestration.payment_outbox_interventions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_outbox_act('intervention_no');

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.payment_outbox_interventions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'outbox_id', 'intervention_no');
ALTER TABLE orchestration.payment_outbox_interventions ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.payment_outbox_interventions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.payment_outbox_interventions ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.payment_outbox_interventions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.payment_outbox_interventions
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
