CREATE TABLE orchestration.revoked_client_certs (
  cert_fingerprint_sha256 text NOT NULL,
  revocation_no integer NOT NULL,
  revoked_at timestamptz NOT NULL,
  recorded_at timestamptz NOT NULL,
  expires_at timestamptz,
  reason_code text NOT NULL,
  revoked_by text DEFAULT SESSION_USER NOT NULL,
  db_user text NOT NULL,
  xact_id bigint NOT NULL,
  CONSTRAINT ck_revoked_client_certs_expiry CHECK (expires_at IS NULL OR expires_at >= revoked_at),
  CONSTRAINT ck_revoked_client_certs_reason_code CHECK (
    reason_code IN (
      'unspecified',
      'keyCompromise',
      'cACompromise',
      'affiliationChanged',
      'superseded',
      'cessationOfOperation',
      'certificateHold',
      'privilegeWithdrawn',
      'aACompromise'
    )
  ),
  CONSTRAINT ck_revoked_client_certs_revoked_by CHECK (
    octet_length(revoked_by) BETWEEN 1 AND 1000
  ),
  CONSTRAINT ck_revoked_client_certs_years CHECK (
    extract(year FROM revoked_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM revoked_at AT TIME ZONE 'UTC') <= 9998
    AND extract(year FROM recorded_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM recorded_at AT TIME ZONE 'UTC') <= 9998
    AND extract(year FROM expires_at AT TIME ZONE 'UTC') >= 1
    AND extract(year FROM expires_at AT TIME ZONE 'UTC') <= 9998
  ),
  CONSTRAINT ck_revoked_client_certs_revocation_no CHECK (revocation_no >= 1),
  CONSTRAINT pk_revoked_client_certs PRIMARY KEY (cert_fingerprint_sha256, revocation_no)
);

CREATE INDEX ix_revoked_client_certs_expires_at ON orchestration.revoked_client_certs (expires_at);
CREATE INDEX ix_revoked_client_certs_revoked_at ON orchestration.revoked_client_certs (revoked_at);
CREATE INDEX ix_revoked_client_certs_xact_id
ON orchestration.revoked_client_certs USING brin (xact_id);

CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER gate;

CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('cert_fingerprint_sha256');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER guard;

CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_client_certs
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act(
  'cert_fingerprint_sha256', 'REVOKE', 'revocation_no');

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION
  orchestration.refuse_change('INV-REV-001', 'P0001', 'revocation_no', 'revoked_at');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER no_truncate;

CREATE CONSTRAINT TRIGGER durable AFTER INSERT ON orchestration.revoked_client_certs
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION orchestration.keep_commit_durable();

ALTER TABLE orchestration.revoked_client_certs OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revoked_client_certs
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor;
