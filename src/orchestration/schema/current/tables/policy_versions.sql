CREATE TABLE orchestration.policy_versions (
  id text NOT NULL,
  description text NOT NULL,
  checksum text NOT NULL,
  status text DEFAULT 'ACTIVE' NOT NULL,
  activated_at timestamptz NOT NULL,
  grace_expires_at timestamptz,
  retired_at timestamptz,
  retired_db_user text,
  created_at timestamptz NOT NULL,
  created_by text DEFAULT SESSION_USER NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_policy_versions_id CHECK (octet_length(id) BETWEEN 1 AND 1000),
  CONSTRAINT ck_policy_versions_description CHECK (octet_length(description) BETWEEN 1 AND 4000),
  CONSTRAINT ck_policy_versions_created_by CHECK (octet_length(created_by) BETWEEN 1 AND 1000),
  CONSTRAINT ck_policy_versions_checksum CHECK (
    octet_length(checksum) = 64 AND checksum ~ '^[0-9a-f]*$'
  ),
  CONSTRAINT ck_policy_versions_status CHECK (status IN ('ACTIVE', 'GRACE', 'RETIRED')),
  CONSTRAINT ck_policy_versions_times CHECK (
    (status = 'ACTIVE') = (grace_expires_at IS NULL)
    AND (status = 'RETIRED') = (retired_at IS NOT NULL)
  ),
  -- The date types of other languages cover the years 1 to 9999. One year at either end is left for
  -- the time zone in which a client shows the value.
  CONSTRAINT ck_policy_versions_years CHECK (
    extract(year FROM activated_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM activated_at AT TIME ZONE 'UTC') <= 9998
    AND extract(year FROM grace_expires_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM grace_expires_at AT TIME ZONE 'UTC') <= 9998
    AND extract(year FROM retired_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM retired_at AT TIME ZONE 'UTC') <= 9998
    AND extract(year FROM created_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM created_at AT TIME ZONE 'UTC') <= 9998
  ),
  CONSTRAINT pk_policy_versions PRIMARY KEY (id)
);

CREATE UNIQUE INDEX uq_policy_versions_active ON orchestration.policy_versions (status)
WHERE status = 'ACTIVE';
CREATE UNIQUE INDEX uq_policy_versions_grace ON orchestration.policy_versions (status)
WHERE status = 'GRACE';

CREATE TRIGGER gate BEFORE INSERT OR UPDATE ON orchestration.policy_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('policy_gate');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER gate;

CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.policy_versions
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_policy_version();
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER audit_insert AFTER INSERT ON orchestration.policy_versions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_entry();

CREATE TRIGGER audit_update AFTER UPDATE ON orchestration.policy_versions
REFERENCING OLD TABLE AS old_versions NEW TABLE AS new_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_change();

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.policy_versions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102', 'id', 'status');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.policy_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER no_truncate;

CREATE CONSTRAINT TRIGGER active_remains AFTER INSERT OR UPDATE ON orchestration.policy_versions
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION orchestration.check_active_policy_remains();
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER active_remains;

ALTER TABLE orchestration.policy_versions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.policy_versions
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
