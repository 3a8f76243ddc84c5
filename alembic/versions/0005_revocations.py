"""Create the revocations of client certificates and tokens, and their gate.

Serves: INV-REV-001 to INV-REV-007, INV-AUD-001, INV-API-001, INV-ATT-009.
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
    op.execute("GRANT SELECT ON orchestration.revocation_gate TO symphony_auditor")
    op.execute("INSERT INTO orchestration.revocation_gate DEFAULT VALUES")
    op.create_table(
        "revoked_client_certs",
        sa.Column("cert_fingerprint_sha256", sa.Text(), nullable=False),
        sa.Column("revocation_no", sa.Integer(), nullable=False),
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
        sa.CheckConstraint(
            "octet_length(revoked_by) BETWEEN 1 AND 1000",
            name=op.f("ck_revoked_client_certs_revoked_by"),
        ),
        sa.CheckConstraint(
            "extract(year FROM revoked_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM revoked_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') <= 9998",
            name=op.f("ck_revoked_client_certs_years"),
        ),
        sa.CheckConstraint(
            "revocation_no >= 1", name=op.f("ck_revoked_client_certs_revocation_no")
        ),
        sa.PrimaryKeyConstraint(
            "cert_fingerprint_sha256", "revocation_no", name=op.f("pk_revoked_client_certs")
        ),
        schema="orchestration",
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("revocation_no", sa.Integer(), nullable=False),
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
        sa.CheckConstraint(
            "octet_length(revoked_by) BETWEEN 1 AND 1000", name=op.f("ck_revoked_tokens_revoked_by")
        ),
        sa.CheckConstraint(
            "extract(year FROM revoked_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM revoked_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM recorded_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM expires_at AT TIME ZONE 'UTC') <= 9998",
            name=op.f("ck_revoked_tokens_years"),
        ),
        sa.CheckConstraint("revocation_no >= 1", name=op.f("ck_revoked_tokens_revocation_no")),
        sa.PrimaryKeyConstraint("token_hash", "revocation_no", name=op.f("pk_revoked_tokens")),
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
    op.execute(
        """
GRANT SELECT ON orchestration.revoked_client_certs
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
"""
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
GRANT SELECT ON orchestration.revoked_tokens
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- A stored revocation was not in the future when it was recorded. The views therefore do not
-- compare revoked_at with a clock that may have been set back since (INV-REV-007).
CREATE VIEW orchestration.revoked_client_certs_in_force
WITH (security_invoker = true)
AS
SELECT cert_fingerprint_sha256, revocation_no, revoked_at, expires_at, reason_code
FROM orchestration.revoked_client_certs
WHERE expires_at IS NULL
   OR clock_timestamp() < expires_at;

ALTER VIEW orchestration.revoked_client_certs_in_force OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revoked_client_certs_in_force
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.revoked_tokens_in_force
WITH (security_invoker = true)
AS
SELECT token_hash, revocation_no, revoked_at, expires_at, reason_code
FROM orchestration.revoked_tokens
WHERE expires_at IS NULL
   OR clock_timestamp() < expires_at;

ALTER VIEW orchestration.revoked_tokens_in_force OWNER TO symphony_owner;
GRANT SELECT ON orchestration.revoked_tokens_in_force
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
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
  v_last integer;
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
      'INV-REV-003', 'P7201', format('%s must be a SHA-256 in lowercase hex', TG_ARGV[0]),
      -- DETAIL must not contain the value, which can be the credential itself.
      TG_TABLE_NAME, jsonb_build_object('column', TG_ARGV[0], 'octets', octet_length(v_hash)),
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.', TG_ARGV[0]
    );
  END IF;
  -- The statement trigger has locked the gate, so no other transaction uses the next number.
  EXECUTE format(
    'SELECT coalesce(max(revocation_no), 0), coalesce(bool_or(revocation_no = $2), false)'
    ' FROM orchestration.%I WHERE %I = $1',
    TG_TABLE_NAME, TG_ARGV[0]
  ) INTO v_last, v_known USING v_hash, NEW.revocation_no;
  IF v_known THEN
    -- The primary key rejects this row, or ON CONFLICT DO NOTHING skips it.
    RETURN NEW;
  END IF;
  IF NOT v_replica THEN
    NEW.revocation_no := coalesce(NEW.revocation_no, v_last + 1);
  END IF;
  IF NEW.revocation_no <> v_last + 1
    AND NOT (v_replica AND orchestration.copies_a_subscription()) THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-006', 'P7201',
      'revocation_no must be the number after the credential''s last record', TG_TABLE_NAME,
      jsonb_build_object('revocation_no', NEW.revocation_no, 'expected', v_last + 1),
      'Leave revocation_no out: the database sets it.', 'revocation_no'
    );
  END IF;
  IF NOT isfinite(NEW.revoked_at)
    OR NEW.revoked_at > v_now AND NOT (v_replica AND orchestration.copies_a_subscription()) THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-005', 'P7201', 'revoked_at must not be in the future', TG_TABLE_NAME,
      jsonb_build_object('revocation_no', NEW.revocation_no, 'revoked_at', NEW.revoked_at),
      'Leave revoked_at out, or pass the past time from which the credential counts as revoked.',
      'revoked_at'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_revocation OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_revocation FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER gate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('cert_fingerprint_sha256');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_client_certs
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act(
  'cert_fingerprint_sha256', 'REVOKE', 'revocation_no')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.revoked_client_certs
FOR EACH ROW EXECUTE FUNCTION
  orchestration.refuse_change('INV-REV-001', 'P0001', 'revocation_no', 'revoked_at');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_client_certs
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001');
ALTER TABLE orchestration.revoked_client_certs ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT ON orchestration.revoked_tokens
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('revocation_gate');
ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER gate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.revoked_tokens
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_revocation('token_hash');
ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT ON orchestration.revoked_tokens
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_act(
  'token_hash', 'REVOKE', 'revocation_no')
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.revoked_tokens
FOR EACH ROW EXECUTE FUNCTION
  orchestration.refuse_change('INV-REV-001', 'P0001', 'revocation_no', 'revoked_at');
ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revoked_tokens
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-REV-001', 'P0001');
ALTER TABLE orchestration.revoked_tokens ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.revocation_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.revocation_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-009', 'P0001');
ALTER TABLE orchestration.revocation_gate ENABLE ALWAYS TRIGGER no_truncate
"""
    )

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
  PERFORM orchestration.refuse_long_texts(
    'revoked_client_certs', ARRAY['cert_fingerprint_sha256', 'reason_code', 'revoked_by'],
    ARRAY[p_cert_fingerprint_sha256, p_reason_code, p_revoked_by]
  );
  PERFORM orchestration.lock_gate('revocation_gate');
  -- Return a stored record that lasts at least as long as the requested one, if it is in force. A
  -- record that has expired must also begin as early: that is a repeated call or import.
  RETURN QUERY
  SELECT r.*
  FROM orchestration.revoked_client_certs r
  WHERE r.cert_fingerprint_sha256 = p_cert_fingerprint_sha256
    AND (r.expires_at IS NULL OR r.expires_at >= p_expires_at)
    AND (
      p_revoked_at IS NULL
      OR r.revoked_at <= p_revoked_at
      OR EXISTS (
        SELECT FROM orchestration.revoked_client_certs_in_force f
        WHERE f.cert_fingerprint_sha256 = r.cert_fingerprint_sha256 AND f.revocation_no = r.revocation_no
      )
    )
  ORDER BY r.expires_at DESC NULLS FIRST, r.revocation_no
  LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.revoked_client_certs
    (cert_fingerprint_sha256, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_cert_fingerprint_sha256, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  RETURNING *;
END
$$;

ALTER FUNCTION orchestration.revoke_client_cert OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.revoke_client_cert FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.revoke_client_cert TO symphony_control
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
  PERFORM orchestration.refuse_long_texts(
    'revoked_tokens', ARRAY['token_hash', 'reason_code', 'revoked_by'],
    ARRAY[p_token_hash, p_reason_code, p_revoked_by]
  );
  PERFORM orchestration.lock_gate('revocation_gate');
  -- Return a stored record that lasts at least as long as the requested one, if it is in force. A
  -- record that has expired must also begin as early: that is a repeated call or import.
  RETURN QUERY
  SELECT r.*
  FROM orchestration.revoked_tokens r
  WHERE r.token_hash = p_token_hash
    AND (r.expires_at IS NULL OR r.expires_at >= p_expires_at)
    AND (
      p_revoked_at IS NULL
      OR r.revoked_at <= p_revoked_at
      OR EXISTS (
        SELECT FROM orchestration.revoked_tokens_in_force f
        WHERE f.token_hash = r.token_hash AND f.revocation_no = r.revocation_no
      )
    )
  ORDER BY r.expires_at DESC NULLS FIRST, r.revocation_no
  LIMIT 1;
  IF FOUND THEN
    RETURN;
  END IF;
  RETURN QUERY
  INSERT INTO orchestration.revoked_tokens
    (token_hash, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_token_hash, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  RETURNING *;
END
$$;

ALTER FUNCTION orchestration.revoke_token OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.revoke_token FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.revoke_token TO symphony_control
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
  v_malformed text := CASE
    WHEN octet_length(p_client_cert_fingerprint_sha256) <> 64
      OR p_client_cert_fingerprint_sha256 !~ '^[0-9a-f]*$'
      THEN 'p_client_cert_fingerprint_sha256'
    WHEN octet_length(p_token_hash) <> 64 OR p_token_hash !~ '^[0-9a-f]*$' THEN 'p_token_hash'
  END;
BEGIN
  IF v_malformed IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-REV-003', 'P7201', format('%s must be a SHA-256 in lowercase hex', v_malformed),
      'revoked_tokens', '{}',
      'Pass the 64 lowercase hex digits of the SHA-256, never the credential itself.'
    );
  END IF;
  PERFORM orchestration.share_gate('revocation_gate');
  IF EXISTS (
    SELECT FROM orchestration.revoked_client_certs_in_force r
    WHERE r.cert_fingerprint_sha256 = p_client_cert_fingerprint_sha256
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the client certificate is revoked', 'revoked_client_certs',
      jsonb_build_object('credential', 'CLIENT_CERT'),
      'Have the client present another certificate.', 'cert_fingerprint_sha256'
    );
  END IF;
  IF EXISTS (
    SELECT FROM orchestration.revoked_tokens_in_force r WHERE r.token_hash = p_token_hash
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-009', 'P7202', 'the token is revoked', 'revoked_tokens',
      jsonb_build_object('credential', 'TOKEN'),
      'Have the caller obtain another token.', 'token_hash'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.require_credential_not_revoked OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.require_credential_not_revoked FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.require_credential_not_revoked
TO symphony_ingest, symphony_executor, symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.revocations_since(p_watermark pg_snapshot DEFAULT NULL)
RETURNS TABLE (
  watermark pg_snapshot,
  credential text,
  hash text,
  revocation_no integer,
  revoked_at timestamptz,
  recorded_at timestamptz,
  expires_at timestamptz,
  reason_code text,
  revoked_by text,
  db_user text,
  xact_id bigint
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Returns the revocations that p_watermark does not cover. Each row also contains the next watermark.
-- If there is no revocation, one row contains only the watermark.
--
-- After a crash the server assigns transaction ids again if nothing of their transactions was flushed.
-- A watermark is therefore this statement's snapshot, cut off after the last transaction that is known
-- to be durable: one whose revocation is returned here, or one that p_watermark already covers. A
-- commit is flushed before it is visible (keep_commit_durable), and recovery assigns only greater ids.
-- The next call returns what the cut leaves out.
--
-- Longer than 70 lines because the watermark and the rows must come from one snapshot, so from one
-- statement.
DECLARE
  v_now_xmax xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
  -- A standby can be behind the server that returned the watermark.
  IF pg_snapshot_xmax(p_watermark) > v_now_xmax AND NOT pg_is_in_recovery() THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_watermark must not be newer than this transaction',
      'revoked_tokens', jsonb_build_object('p_watermark', p_watermark, 'xmax', v_now_xmax),
      'Read again from the start, without p_watermark. A watermark from another cluster or from'
      ' before a restore cannot be used.'
    );
  END IF;
  RETURN QUERY
  WITH uncovered AS MATERIALIZED (
    SELECT 'CLIENT_CERT' AS credential, c.cert_fingerprint_sha256 AS hash, c.revocation_no,
           c.revoked_at, c.recorded_at, c.expires_at, c.reason_code, c.revoked_by, c.db_user,
           c.xact_id, c.xmin::text::bigint AS stored_by
    FROM orchestration.revoked_client_certs c
    WHERE c.xact_id >= coalesce(pg_snapshot_xmin(p_watermark)::text::bigint, 0)
      AND pg_visible_in_snapshot(c.xact_id::text::xid8, p_watermark) IS NOT TRUE
    UNION ALL
    SELECT 'TOKEN', t.token_hash, t.revocation_no,
           t.revoked_at, t.recorded_at, t.expires_at, t.reason_code, t.revoked_by, t.db_user,
           t.xact_id, t.xmin::text::bigint
    FROM orchestration.revoked_tokens t
    WHERE t.xact_id >= coalesce(pg_snapshot_xmin(p_watermark)::text::bigint, 0)
      AND pg_visible_in_snapshot(t.xact_id::text::xid8, p_watermark) IS NOT TRUE
  ), snapshot AS MATERIALIZED (
    SELECT pg_current_snapshot() AS taken,
           pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin,
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax
  ), durable AS (
    -- After a restore xact_id belongs to the old cluster, so this uses the id that stored the row. Only
    -- 32 bits of it are in xmin. In a savepoint xmin is greater than xact_id.
    SELECT greatest(
             3,
             pg_snapshot_xmax(p_watermark)::text::bigint,
             max(stored.id) FILTER (WHERE stored.id < (SELECT s.xmax FROM snapshot s)) + 1
           ) AS xmax
    FROM uncovered t
    CROSS JOIN LATERAL (
      SELECT t.xact_id + ((t.stored_by - t.xact_id) & 4294967295) AS id
    ) stored
  ), cut AS (
    -- A transaction that has written sees its own rows, but its snapshot does not list its id. The
    -- snapshot of a standby lists no ids. In both cases the cut comes before all running transactions.
    SELECT s.taken, s.xmin,
           least(
             d.xmax,
             CASE
               WHEN pg_is_in_recovery() OR pg_current_xact_id_if_assigned() IS NOT NULL THEN s.xmin
               ELSE s.xmax
             END
           ) AS xmax
    FROM snapshot s
    CROSS JOIN durable d
  ), next AS MATERIALIZED (
    SELECT format(
             '%s:%s:%s', least(c.xmin, c.xmax), c.xmax,
             (
               SELECT string_agg(x.id::text, ',' ORDER BY x.id)
               FROM pg_snapshot_xip(c.taken) AS x (id)
               WHERE x.id::text::bigint < c.xmax
             )
           )::pg_snapshot AS watermark
    FROM cut c
  )
  SELECT n.watermark, t.credential, t.hash, t.revocation_no, t.revoked_at, t.recorded_at,
         t.expires_at, t.reason_code, t.revoked_by, t.db_user, t.xact_id
  FROM next n
  LEFT JOIN uncovered t ON true
  ORDER BY t.recorded_at, t.hash, t.revocation_no;
END
$$;

ALTER FUNCTION orchestration.revocations_since OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.revocations_since FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.revocations_since
TO symphony_ingest, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.keep_commit_durable() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A watermark of revocations_since covers the transactions whose revocations the reader saw. Their
-- commits must therefore be flushed before they become visible. The trigger is deferred, so that it
-- runs after the last statement in which the login could set synchronous_commit to off.
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.keep_commit_durable OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.keep_commit_durable FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE CONSTRAINT TRIGGER durable AFTER INSERT ON orchestration.revoked_client_certs
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION orchestration.keep_commit_durable()
"""
    )
    op.execute(
        """
CREATE CONSTRAINT TRIGGER durable AFTER INSERT ON orchestration.revoked_tokens
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION orchestration.keep_commit_durable()
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
    RAISE EXCEPTION 'revoked_client_certs and revoked_tokens contain evidence; '
      'to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.revocations_since")
    op.execute("DROP FUNCTION orchestration.require_credential_not_revoked")
    op.execute("DROP FUNCTION orchestration.revoke_token")
    op.execute("DROP FUNCTION orchestration.revoke_client_cert")
    op.execute("DROP VIEW orchestration.revoked_tokens_in_force")
    op.execute("DROP VIEW orchestration.revoked_client_certs_in_force")
    op.drop_table("revoked_tokens", schema="orchestration")
    op.drop_table("revoked_client_certs", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.guard_revocation")
    op.drop_table("revocation_gate", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.keep_commit_durable")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0004'")
    op.execute("RESET ROLE")
