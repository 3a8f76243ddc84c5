"""Revoked client certificates and tokens, and their gate.

Serves: INV-REV-001 to INV-REV-006, INV-AUD-001, and the gate of INV-ATT-009.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.create_table(
        "revocation_gate",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("singleton", name=op.f("ck_revocation_gate_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_revocation_gate")),
        schema="orchestration",
    )
    op.execute("INSERT INTO orchestration.revocation_gate DEFAULT VALUES")
    op.create_table(
        "revoked_client_certs",
        sa.Column("cert_fingerprint_sha256", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("revoked_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "expires_at IS NULL OR expires_at >= revoked_at",
            name=op.f("ck_revoked_client_certs_expiry"),
        ),
        sa.CheckConstraint(
            "reason_code IN ('unspecified', 'keyCompromise', 'cACompromise', 'affiliationChanged',"
            " 'superseded', 'cessationOfOperation', 'certificateHold', 'privilegeWithdrawn',"
            " 'aACompromise')",
            name=op.f("ck_revoked_client_certs_reason_code"),
        ),
        sa.CheckConstraint("revoked_by <> ''", name=op.f("ck_revoked_client_certs_revoked_by")),
        sa.CheckConstraint(
            "extract(year FROM revoked_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM revoked_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') <= 9998",
            name=op.f("ck_revoked_client_certs_years"),
        ),
        sa.PrimaryKeyConstraint("cert_fingerprint_sha256", name=op.f("pk_revoked_client_certs")),
        schema="orchestration",
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("revoked_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "expires_at IS NULL OR expires_at >= revoked_at",
            name=op.f("ck_revoked_tokens_expiry"),
        ),
        sa.CheckConstraint(
            "reason_code IN ('unspecified', 'keyCompromise', 'cACompromise', 'affiliationChanged',"
            " 'superseded', 'cessationOfOperation', 'certificateHold', 'privilegeWithdrawn',"
            " 'aACompromise')",
            name=op.f("ck_revoked_tokens_reason_code"),
        ),
        sa.CheckConstraint("revoked_by <> ''", name=op.f("ck_revoked_tokens_revoked_by")),
        sa.CheckConstraint(
            "extract(year FROM revoked_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM revoked_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') <= 9998",
            name=op.f("ck_revoked_tokens_years"),
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_revoked_tokens")),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_revoked_client_certs_expires_at"),
        "revoked_client_certs",
        ["expires_at"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_revoked_client_certs_revoked_at"),
        "revoked_client_certs",
        ["revoked_at"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_revoked_client_certs_xact_id"),
        "revoked_client_certs",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.create_index(
        op.f("ix_revoked_tokens_expires_at"),
        "revoked_tokens",
        ["expires_at"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_revoked_tokens_revoked_at"),
        "revoked_tokens",
        ["revoked_at"],
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_revoked_tokens_xact_id"),
        "revoked_tokens",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute(
        """
CREATE FUNCTION orchestration.share_revocation_gate() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  -- A client that stops in this transaction holds the gate, and every change waits for it.
  v_bound text := orchestration.bound_idle_time();
BEGIN
  LOCK TABLE orchestration.revocation_gate IN ROW SHARE MODE;
  -- An older snapshot would read past the lock: the row, updated by every change, answers 40001.
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    PERFORM 1 FROM orchestration.revocation_gate WHERE singleton FOR SHARE;
    IF NOT FOUND THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-002', 'P0002', 'revocation_gate has lost its row', 'revocation_gate', '{}',
        'Insert it again, as owner: INSERT INTO orchestration.revocation_gate DEFAULT VALUES'
      );
    END IF;
  END IF;
END
$$
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_revocation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the column that holds the credential's hash.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_hash text := to_jsonb(NEW) ->> TG_ARGV[0];
  v_now timestamptz := clock_timestamp();
  v_known boolean;
BEGIN
  IF NOT v_replica THEN
    NEW.revoked_at := coalesce(NEW.revoked_at, v_now);
    NEW.recorded_at := v_now;
    NEW.db_user := SESSION_USER;
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  IF (octet_length(v_hash) = 64 AND v_hash ~ '^[0-9a-f]*$') IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-003', 'P7201', format('%s is not a SHA-256 in lowercase hex', TG_ARGV[0]),
      -- Never the value: it may be the credential itself.
      TG_TABLE_NAME, jsonb_build_object('column', TG_ARGV[0], 'octets', octet_length(v_hash)),
      'Give the 64 lowercase hex digits of the SHA-256, never the credential itself.', TG_ARGV[0]
    );
  END IF;
  EXECUTE format(
    'SELECT EXISTS (SELECT FROM orchestration.%I WHERE %I = $1)', TG_TABLE_NAME, TG_ARGV[0]
  ) INTO v_known USING v_hash;
  IF v_known THEN
    -- The primary key refuses it, or ON CONFLICT passes it over.
    RETURN NEW;
  END IF;
  IF NOT isfinite(NEW.revoked_at)
    OR NEW.revoked_at > v_now AND NOT (v_replica AND orchestration.copies_a_subscription()) THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-005', 'P7201', 'revoked_at is in the future', TG_TABLE_NAME,
      jsonb_build_object(TG_ARGV[0], v_hash, 'revoked_at', NEW.revoked_at),
      'Leave revoked_at out, or give the past time from which the credential counts as revoked.',
      'revoked_at'
    );
  END IF;
  RETURN NEW;
END
$$
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate')
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('cert_fingerprint_sha256')
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_client_certs
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('cert_fingerprint_sha256', 'REVOKE')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION
  orchestration.refuse_change('INV-REV-001', 'P0001', 'cert_fingerprint_sha256')
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001')
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_tokens
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate')
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_tokens
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('token_hash')
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_tokens
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act('token_hash', 'REVOKE')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.revoked_tokens
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001', 'token_hash')
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_tokens
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001')
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.revocation_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001')
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revocation_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001')
"""
    )
    op.execute("ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER gate")
    op.execute("ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER guard")
    op.execute("ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER append_only")
    op.execute("ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER no_truncate")
    op.execute("ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER gate")
    op.execute("ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER guard")
    op.execute("ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER append_only")
    op.execute("ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER no_truncate")
    op.execute("ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_delete")
    op.execute("ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_truncate")

    op.execute(
        """
CREATE FUNCTION orchestration.revoke_client_cert(
  p_cert_fingerprint_sha256 text,
  p_reason_code text,
  p_revoked_by text DEFAULT SESSION_USER,
  p_expires_at timestamptz DEFAULT NULL,
  p_revoked_at timestamptz DEFAULT NULL
) RETURNS SETOF orchestration.revoked_client_certs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
  INSERT INTO orchestration.revoked_client_certs
    (cert_fingerprint_sha256, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_cert_fingerprint_sha256, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  ON CONFLICT DO NOTHING;
  RETURN QUERY
  SELECT r.*
  FROM orchestration.revoked_client_certs r
  WHERE r.cert_fingerprint_sha256 = p_cert_fingerprint_sha256;
END
$$
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.revoke_token(
  p_token_hash text,
  p_reason_code text,
  p_revoked_by text DEFAULT SESSION_USER,
  p_expires_at timestamptz DEFAULT NULL,
  p_revoked_at timestamptz DEFAULT NULL
) RETURNS SETOF orchestration.revoked_tokens
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
  INSERT INTO orchestration.revoked_tokens
    (token_hash, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_token_hash, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  ON CONFLICT DO NOTHING;
  RETURN QUERY
  SELECT r.* FROM orchestration.revoked_tokens r WHERE r.token_hash = p_token_hash;
END
$$
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.require_credential_not_revoked(
  p_client_cert_fingerprint_sha256 text DEFAULT NULL,
  p_token_hash text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  v_now timestamptz;
BEGIN
  IF octet_length(p_client_cert_fingerprint_sha256) <> 64
    OR p_client_cert_fingerprint_sha256 !~ '^[0-9a-f]*$'
    OR octet_length(p_token_hash) <> 64
    OR p_token_hash !~ '^[0-9a-f]*$' THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-003', 'P7201', 'a hash is not a SHA-256 in lowercase hex', 'revoked_tokens', '{}',
      'Give the 64 lowercase hex digits of the SHA-256, never the credential itself.'
    );
  END IF;
  PERFORM orchestration.share_revocation_gate();
  v_now := clock_timestamp();
  IF EXISTS (
    SELECT FROM orchestration.revoked_client_certs r
    WHERE r.cert_fingerprint_sha256 = p_client_cert_fingerprint_sha256
      AND r.revoked_at <= v_now
      AND (r.expires_at IS NULL OR v_now < r.expires_at)
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the client certificate is revoked', 'revoked_client_certs',
      jsonb_build_object('cert_fingerprint_sha256', p_client_cert_fingerprint_sha256),
      'Have the client present another certificate.', 'cert_fingerprint_sha256'
    );
  END IF;
  IF EXISTS (
    SELECT FROM orchestration.revoked_tokens r
    WHERE r.token_hash = p_token_hash
      AND r.revoked_at <= v_now
      AND (r.expires_at IS NULL OR v_now < r.expires_at)
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the token is revoked', 'revoked_tokens',
      jsonb_build_object('token_hash', p_token_hash),
      'Have the caller obtain another token.', 'token_hash'
    );
  END IF;
END
$$
"""
    )
    op.execute(
        """
REVOKE EXECUTE ON FUNCTION
  orchestration.share_revocation_gate(),
  orchestration.guard_revocation(),
  orchestration.revoke_client_cert(text, text, text, timestamptz, timestamptz),
  orchestration.revoke_token(text, text, text, timestamptz, timestamptz),
  orchestration.require_credential_not_revoked(text, text)
FROM PUBLIC
"""
    )
    op.execute(
        """
GRANT SELECT ON orchestration.revoked_client_certs, orchestration.revoked_tokens
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute("GRANT SELECT ON orchestration.revocation_gate TO symphony_auditor")
    op.execute(
        """
GRANT EXECUTE ON FUNCTION orchestration.require_credential_not_revoked(text, text)
TO symphony_ingest, symphony_executor, symphony_control
"""
    )
    op.execute(
        """
GRANT EXECUTE ON FUNCTION
  orchestration.revoke_client_cert(text, text, text, timestamptz, timestamptz),
  orchestration.revoke_token(text, text, text, timestamptz, timestamptz)
TO symphony_control
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0005'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.revoked_client_certs)
    OR EXISTS (SELECT FROM orchestration.revoked_tokens) THEN
    RAISE EXCEPTION 'revoked_client_certs and revoked_tokens hold evidence; '
      'to destroy it say -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.require_credential_not_revoked(text, text)")
    op.execute(
        "DROP FUNCTION orchestration.revoke_token(text, text, text, timestamptz, timestamptz)"
    )
    op.execute(
        "DROP FUNCTION orchestration.revoke_client_cert(text, text, text, timestamptz, timestamptz)"
    )
    op.drop_table("revoked_tokens", schema="orchestration")
    op.drop_table("revoked_client_certs", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_revocation()")
    op.execute("DROP FUNCTION orchestration.share_revocation_gate()")
    op.drop_table("revocation_gate", schema="orchestration")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0004'")
    op.execute("RESET ROLE")
