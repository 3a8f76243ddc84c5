CREATE TABLE orchestration.status_history (
  instruction_id uuid NOT NULL,
  version integer NOT NULL,
  participant_id text NOT NULL,
  from_state text,
  to_state text NOT NULL,
  reason text,
  occurred_at timestamptz NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_status_history_transition CHECK (
    CASE to_state
      WHEN 'RECEIVED' THEN from_state IS NULL AND version = 1
      WHEN 'AUTHORIZED' THEN from_state = 'RECEIVED'
      WHEN 'EXECUTING' THEN from_state = 'AUTHORIZED'
      WHEN 'COMPLETED' THEN from_state = 'EXECUTING'
      WHEN 'FAILED' THEN from_state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING')
      ELSE false
    END
    AND (from_state IS NOT NULL OR to_state = 'RECEIVED')
  ),
  CONSTRAINT ck_status_history_reason CHECK (
    (to_state = 'FAILED') = (reason IS NOT NULL) AND octet_length(reason) <= 4000
  ),
  CONSTRAINT fk_status_history_participant_id_instruction_id
    FOREIGN KEY (participant_id, instruction_id)
    REFERENCES orchestration.instructions (participant_id, id),
  CONSTRAINT pk_status_history PRIMARY KEY (instruction_id, version)
);

CREATE INDEX ix_status_history_xact_id ON orchestration.status_history USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.status_history
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_status_history();
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.status_history
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change(
  'INV-APP-001', 'P0001', 'instruction_id', 'version');
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.status_history
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.status_history ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.status_history OWNER TO symphony_owner;
GRANT SELECT ON orchestration.status_history
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
