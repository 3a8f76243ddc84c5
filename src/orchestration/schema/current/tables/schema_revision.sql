CREATE TABLE orchestration.schema_revision (
  singleton boolean DEFAULT true NOT NULL,
  revision text NOT NULL,
  changes bigint DEFAULT 0 NOT NULL,
  CONSTRAINT ck_schema_revision_singleton CHECK (singleton),
  CONSTRAINT pk_schema_revision PRIMARY KEY (singleton)
);

CREATE TRIGGER count BEFORE UPDATE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.count_schema_change();

CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'revision');
ALTER TABLE orchestration.schema_revision ENABLE ALWAYS TRIGGER no_delete;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.schema_revision
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
ALTER TABLE orchestration.schema_revision ENABLE ALWAYS TRIGGER no_truncate;

CREATE TRIGGER audit AFTER INSERT OR UPDATE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.record_migration();

ALTER TABLE orchestration.schema_revision OWNER TO symphony_owner;
GRANT SELECT ON orchestration.schema_revision
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor;
