CREATE TABLE orchestration.audit_log (
  chain_seq bigint NOT NULL,
  action text NOT NULL,
  table_name text NOT NULL,
  before jsonb,
  after jsonb NOT NULL,
  occurred_at timestamptz NOT NULL,
  db_user text NOT NULL,
  db_role text NOT NULL,
  client_addr inet,
  prev_hash text NOT NULL,
  record_hash text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_audit_log_chain_seq CHECK (chain_seq >= 1),
  CONSTRAINT ck_audit_log_action CHECK (
    action IN (
      'MIGRATE',
      'ROTATE',
      'RETIRE',
      'DEMOTE',
      'SHORTEN',
      'REVOKE',
      'ENGAGE',
      'RELEASE',
      'REDRIVE',
      'RESOLVE',
      'CANCEL',
      'RESCHEDULE',
      'EXPIRE_LEASE',
      'CLOSE_CONTRADICTION'
    )
  ),
  CONSTRAINT ck_audit_log_table_name CHECK (octet_length(table_name) BETWEEN 1 AND 1000),
  -- Common JSON parsers reject more than 500 levels or numbers of more than 1234 digits. A text of
  -- at most 1,000 bytes can contain neither of them.
  CONSTRAINT ck_audit_log_before CHECK (
    jsonb_typeof(before) = 'object'
    AND (
      octet_length(before::text) <= 1000
      OR NOT jsonb_path_exists(before, 'strict $.**{501}')
        AND NOT jsonb_path_exists(
          before,
          'strict $.** ? (@ >= $n || @ <= -$n)',
          ('{"n": 1' || repeat('0', 1234) || '}')::jsonb
        )
    )
  ),
  CONSTRAINT ck_audit_log_after CHECK (
    jsonb_typeof(after) = 'object'
    AND (
      octet_length(after::text) <= 1000
      OR NOT jsonb_path_exists(after, 'strict $.**{501}')
        AND NOT jsonb_path_exists(
          after,
          'strict $.** ? (@ >= $n || @ <= -$n)',
          ('{"n": 1' || repeat('0', 1234) || '}')::jsonb
        )
    )
  ),
  CONSTRAINT ck_audit_log_client_addr CHECK (
    masklen(client_addr) = CASE family(client_addr) WHEN 4 THEN 32 ELSE 128 END
  ),
  CONSTRAINT ck_audit_log_record_hash CHECK (
    octet_length(record_hash) = 64 AND record_hash ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_audit_log_prev_hash CHECK ((chain_seq = 1) = (prev_hash = '')),
  CONSTRAINT ck_audit_log_years CHECK (
    extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998
  ),
  CONSTRAINT pk_audit_log PRIMARY KEY (chain_seq),
  CONSTRAINT uq_audit_log_prev_hash UNIQUE (prev_hash)
);

CREATE INDEX ix_audit_log_xact_id ON orchestration.audit_log USING brin (xact_id);

CREATE TRIGGER guard BEFORE INSERT ON orchestration.audit_log
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_audit_log();
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER head AFTER INSERT ON orchestration.audit_log
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_audit_log_head();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.audit_log
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'chain_seq');
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER no_truncate;

ALTER TABLE orchestration.audit_log OWNER TO symphony_owner;
GRANT SELECT ON orchestration.audit_log TO symphony_control, symphony_auditor;
