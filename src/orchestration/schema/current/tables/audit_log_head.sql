CREATE TABLE orchestration.audit_log_head (
  singleton boolean DEFAULT true NOT NULL,
  chain_seq bigint DEFAULT 0 NOT NULL,
  record_hash text DEFAULT '' NOT NULL,
  CONSTRAINT ck_audit_log_head_singleton CHECK (singleton),
  CONSTRAINT ck_audit_log_head_chain_seq CHECK (chain_seq >= 0),
  CONSTRAINT pk_audit_log_head PRIMARY KEY (singleton)
);

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.audit_log_head
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'chain_seq');
ALTER TABLE orchestration.audit_log_head ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log_head
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
ALTER TABLE orchestration.audit_log_head ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.audit_log_head OWNER TO symphony_owner;
GRANT SELECT ON orchestration.audit_log_head TO symphony_auditor;
