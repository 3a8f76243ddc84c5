CREATE TABLE orchestration.kill_switches (
  event_no bigint NOT NULL,
  scope text NOT NULL,
  target text,
  action text NOT NULL,
  reason text NOT NULL,
  key text,
  actor text DEFAULT SESSION_USER NOT NULL,
  occurred_at timestamptz NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_kill_switches_event_no CHECK (event_no >= 1),
  CONSTRAINT ck_kill_switches_scope CHECK (
    CASE
      WHEN scope IN ('GLOBAL', 'INGEST', 'EXECUTION', 'DISPATCH') THEN target IS NULL
      WHEN scope IN ('PARTICIPANT', 'RAIL')
        THEN octet_length(coalesce(target, '')) BETWEEN 1 AND 1000
      ELSE false
    END
  ),
  CONSTRAINT ck_kill_switches_action CHECK (action IN ('ENGAGE', 'RELEASE')),
  CONSTRAINT ck_kill_switches_reason CHECK (octet_length(reason) BETWEEN 1 AND 4000),
  CONSTRAINT ck_kill_switches_actor CHECK (octet_length(actor) BETWEEN 1 AND 1000),
  CONSTRAINT ck_kill_switches_key CHECK (octet_length(key) BETWEEN 1 AND 1000),
  CONSTRAINT pk_kill_switches PRIMARY KEY (event_no),
  CONSTRAINT uq_kill_switches_key UNIQUE (key)
);

CREATE INDEX ix_kill_switches_last
ON orchestration.kill_switches (scope, coalesce(target, ''), event_no);
CREATE INDEX ix_kill_switches_xact_id ON orchestration.kill_switches USING brin (xact_id);

CREATE TRIGGER gate BEFORE INSERT ON orchestration.kill_switches
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('kill_switch_gate');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER gate;

CREATE TRIGGER guard BEFORE INSERT ON orchestration.kill_switches
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_kill_switch();
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER audit AFTER INSERT ON orchestration.kill_switches
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('event_no');

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.kill_switches
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'event_no');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.kill_switches
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.kill_switches ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.kill_switches OWNER TO symphony_owner;
GRANT SELECT ON orchestration.kill_switches
TO symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
