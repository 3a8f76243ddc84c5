"""Create the audit log: one hash chain with an entry for every act of governance and migration.

Serves: INV-AUD-001, INV-APP-001. The triggers that record an act are created with the tables that
they watch. Revision 0011 creates the verification, after the last of these tables.
"""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import INET, JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.create_table(
        "audit_log_head",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("chain_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("record_hash", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_audit_log_head_singleton")),
        sa.CheckConstraint("chain_seq >= 0", name=op.f("ck_audit_log_head_chain_seq")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_audit_log_head")),
        schema="orchestration",
    )
    op.execute("GRANT SELECT ON orchestration.audit_log_head TO symphony_auditor")
    op.execute("INSERT INTO orchestration.audit_log_head DEFAULT VALUES")
    op.create_table(
        "audit_log",
        sa.Column("chain_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("before", JSONB(), nullable=True),
        sa.Column("after", JSONB(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("db_role", sa.Text(), nullable=False),
        sa.Column("client_addr", INET(), nullable=True),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("record_hash", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("chain_seq >= 1", name=op.f("ck_audit_log_chain_seq")),
        sa.CheckConstraint(
            "action IN ('MIGRATE', 'ROTATE', 'RETIRE', 'DEMOTE', 'SHORTEN', 'REVOKE', 'ENGAGE',"
            " 'RELEASE', 'REDRIVE', 'RESOLVE', 'CANCEL', 'RESCHEDULE', 'EXPIRE_LEASE',"
            " 'CLOSE_CONTRADICTION')",
            name=op.f("ck_audit_log_action"),
        ),
        sa.CheckConstraint(
            "octet_length(table_name) BETWEEN 1 AND 1000", name=op.f("ck_audit_log_table_name")
        ),
        sa.CheckConstraint(
            "jsonb_typeof(before) = 'object' AND (octet_length(before::text) <= 1000"
            " OR NOT jsonb_path_exists(before, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(before, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name=op.f("ck_audit_log_before"),
        ),
        sa.CheckConstraint(
            "jsonb_typeof(after) = 'object' AND (octet_length(after::text) <= 1000"
            " OR NOT jsonb_path_exists(after, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(after, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name=op.f("ck_audit_log_after"),
        ),
        sa.CheckConstraint(
            "masklen(client_addr) = CASE family(client_addr) WHEN 4 THEN 32 ELSE 128 END",
            name=op.f("ck_audit_log_client_addr"),
        ),
        sa.CheckConstraint(
            "octet_length(record_hash) = 64 AND record_hash ~ '^[0-9a-f]*$'",
            name=op.f("ck_audit_log_record_hash"),
        ),
        sa.CheckConstraint(
            "(chain_seq = 1) = (prev_hash = '')", name=op.f("ck_audit_log_prev_hash")
        ),
        sa.CheckConstraint(
            "extract(year FROM occurred_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name=op.f("ck_audit_log_years"),
        ),
        sa.PrimaryKeyConstraint("chain_seq", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("prev_hash", name=op.f("uq_audit_log_prev_hash")),
        schema="orchestration",
    )
    op.create_index(
        op.f("ix_audit_log_xact_id"),
        "audit_log",
        ["xact_id"],
        schema="orchestration",
        postgresql_using="brin",
    )
    op.execute("GRANT SELECT ON orchestration.audit_log TO symphony_control, symphony_auditor")

    op.execute(
        """
-- Format orchestration.audit.v1. It must never change. Fields are encoded as in
-- attestation_record_hash.
CREATE FUNCTION orchestration.audit_record_hash(p orchestration.audit_log)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(
  '22:orchestration.audit.v1,'
  || length((p).chain_seq::text) || ':' || (p).chain_seq || ','
  || octet_length((p).action) || ':' || (p).action || ','
  || octet_length((p).table_name) || ':' || (p).table_name || ','
  || coalesce(octet_length((p).before::text) || ':' || (p).before::text, '-') || ','
  || octet_length((p).after::text) || ':' || (p).after::text || ','
  || length(((extract(epoch FROM (p).occurred_at) * 1000000)::bigint)::text) || ':'
  || (extract(epoch FROM (p).occurred_at) * 1000000)::bigint || ','
  || octet_length((p).db_user) || ':' || (p).db_user || ','
  || octet_length((p).db_role) || ':' || (p).db_role || ','
  || coalesce(octet_length(host((p).client_addr)) || ':' || host((p).client_addr), '-') || ','
  || octet_length((p).prev_hash) || ':' || (p).prev_hash || ',',
  'UTF8'
)), 'hex');

ALTER FUNCTION orchestration.audit_record_hash OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.audit_record_hash FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.guard_audit_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its five checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_known boolean;
  v_head_seq bigint;
  v_last_seq bigint;
  v_last_hash text;
  v_hash text;
  -- If the client stops responding in this transaction, every act of governance waits for the head.
  v_bound text := orchestration.bound_idle_time();
BEGIN
  -- The head is locked first, and the newest entry is read in a later statement. A transaction that
  -- waited for the lock therefore reads the entry that the other one wrote. With an older snapshot,
  -- locking a head that has moved fails with 40001.
  SELECT h.chain_seq INTO v_head_seq
  FROM orchestration.audit_log_head h
  WHERE NOT v_copied
  FOR UPDATE;
  IF NOT FOUND AND NOT v_replica THEN
    INSERT INTO orchestration.audit_log_head DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT h.chain_seq INTO v_head_seq FROM orchestration.audit_log_head h FOR UPDATE;
  END IF;
  SELECT a.chain_seq, a.record_hash INTO v_last_seq, v_last_hash
  FROM orchestration.audit_log a
  ORDER BY a.chain_seq DESC
  LIMIT 1;
  v_last_seq := coalesce(v_last_seq, 0);
  v_last_hash := coalesce(v_last_hash, '');
  v_known := EXISTS (SELECT FROM orchestration.audit_log a WHERE a.chain_seq = NEW.chain_seq);
  IF NOT v_replica THEN
    NEW.chain_seq := coalesce(NEW.chain_seq, v_last_seq + 1);
    NEW.prev_hash := coalesce(
      NEW.prev_hash, CASE WHEN NEW.chain_seq = 1 THEN '' ELSE v_last_hash END);
    NEW.occurred_at := coalesce(NEW.occurred_at, clock_timestamp());
    NEW.db_user := SESSION_USER;
    NEW.db_role := CASE current_setting('role')
      WHEN 'none' THEN SESSION_USER::text
      ELSE current_setting('role')
    END;
    NEW.client_addr := inet_client_addr();
    NEW.xact_id := pg_current_xact_id()::text::bigint;
  END IF;
  v_hash := orchestration.audit_record_hash(NEW);
  IF NOT v_replica THEN
    NEW.record_hash := coalesce(NEW.record_hash, v_hash);
  END IF;
  IF v_known THEN
    -- The primary key rejects this row.
    RETURN NEW;
  END IF;
  IF v_head_seq > v_last_seq THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'the newest entries of the audit log are missing', 'audit_log',
      jsonb_build_object('head', v_head_seq, 'chain_seq', v_last_seq),
      'Run verify_audit_log.', 'chain_seq'
    );
  END IF;
  IF NOT isfinite(NEW.occurred_at) OR NEW.occurred_at > clock_timestamp() AND NOT v_copied THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'occurred_at must not be in the future', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq, 'occurred_at', NEW.occurred_at),
      'Leave occurred_at out: the database sets it.', 'occurred_at'
    );
  END IF;
  IF NOT v_copied
    AND (NEW.chain_seq, NEW.prev_hash) IS DISTINCT FROM (v_last_seq + 1, v_last_hash) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'chain_seq and prev_hash must continue the audit log', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq, 'expected', v_last_seq + 1),
      'Leave chain_seq and prev_hash out: the database sets them.', 'chain_seq'
    );
  END IF;
  IF NEW.record_hash <> v_hash THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'record_hash is not the hash of the entry', 'audit_log',
      jsonb_build_object('chain_seq', NEW.chain_seq),
      'Leave record_hash out: the database computes it.', 'record_hash'
    );
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_audit_log OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_audit_log FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.advance_audit_log_head() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  UPDATE orchestration.audit_log_head h
  SET chain_seq = last.chain_seq, record_hash = last.record_hash
  FROM (
    SELECT i.chain_seq, i.record_hash FROM inserted i ORDER BY i.chain_seq DESC LIMIT 1
  ) last
  WHERE h.chain_seq < last.chain_seq;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_audit_log_head OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_audit_log_head FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_migration() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (
    'MIGRATE', 'schema_revision',
    CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END,
    to_jsonb(NEW)
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_migration OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_migration FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_act() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- The time zone is set to UTC, so that the JSON text of a time does not depend on the session.
-- Arguments of the trigger: the key column, the action if no column contains it, and the second key
-- column if there is one. A statement that inserts rows of two actions gets two entries.
BEGIN
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT coalesce(TG_ARGV[1], n.entered ->> 'action') AS action,
         TG_TABLE_NAME,
         jsonb_object_agg(
           concat_ws('/', n.entered ->> TG_ARGV[0], n.entered ->> TG_ARGV[2]), n.entered - 'xact_id'
         )
  FROM (SELECT to_jsonb(i) AS entered FROM inserted i) n
  GROUP BY action
  ORDER BY action;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_act OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_act FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT ON orchestration.audit_log
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_audit_log();
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER head AFTER INSERT ON orchestration.audit_log
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.advance_audit_log_head()
"""
    )
    op.execute(
        """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orchestration.audit_log
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001', 'chain_seq');
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER append_only
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-APP-001', 'P0001');
ALTER TABLE orchestration.audit_log ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.audit_log_head
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'chain_seq');
ALTER TABLE orchestration.audit_log_head ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.audit_log_head
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
ALTER TABLE orchestration.audit_log_head ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.record_migration()
"""
    )
    op.execute(
        """
-- The first revision came before the log.
INSERT INTO orchestration.audit_log (action, table_name, after)
SELECT 'MIGRATE', 'schema_revision', to_jsonb(r) FROM orchestration.schema_revision r
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0002'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.audit_log WHERE action <> 'MIGRATE') THEN
    RAISE EXCEPTION 'audit_log contains evidence; to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP TRIGGER audit ON orchestration.schema_revision")
    op.execute("DROP FUNCTION orchestration.record_act")
    op.execute("DROP FUNCTION orchestration.record_migration")
    op.execute("DROP TRIGGER head ON orchestration.audit_log")
    op.execute("DROP TRIGGER guard ON orchestration.audit_log")
    op.execute("DROP FUNCTION orchestration.advance_audit_log_head")
    op.execute("DROP FUNCTION orchestration.guard_audit_log")
    op.execute("DROP FUNCTION orchestration.audit_record_hash")
    op.drop_table("audit_log", schema="orchestration")
    op.drop_table("audit_log_head", schema="orchestration")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0001'")
    op.execute("RESET ROLE")
