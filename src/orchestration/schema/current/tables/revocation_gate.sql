CREATE TABLE orchestration.revocation_gate (
  singleton boolean DEFAULT true NOT NULL,
  changes bigint DEFAULT 0 NOT NULL,
  changed_at timestamptz,
  CONSTRAINT ck_revocation_gate_singleton CHECK (singleton),
  CONSTRAINT pk_revocation_gate PRIMARY KEY (singleton)
);

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.revocation_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revocation_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.revocation_gate OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revocation_gate TO symphony_auditor;
