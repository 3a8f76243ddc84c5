CREATE TABLE orchestration.kill_switch_gate (
  singleton boolean DEFAULT true NOT NULL,
  changes bigint DEFAULT 0 NOT NULL,
  changed_at timestamptz,
  CONSTRAINT ck_kill_switch_gate_singleton CHECK (singleton),
  CONSTRAINT pk_kill_switch_gate PRIMARY KEY (singleton)
);

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.kill_switch_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
ALTER TABLE orchestration.kill_switch_gate ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.kill_switch_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-KIL-002', 'P0001');
ALTER TABLE orchestration.kill_switch_gate ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.kill_switch_gate OWNER TO symphony_owner;
GRANT SELECT ON orchestration.kill_switch_gate TO symphony_auditor;
