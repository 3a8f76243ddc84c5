"""Create the policy versions, their gate, and the functions that rotate and retire them.

Serves: INV-POL-001 to INV-POL-011, INV-AUD-001, INV-API-001, INV-ATT-008.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.create_table(
        "policy_gate",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("singleton", name=op.f("ck_policy_gate_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_policy_gate")),
        schema="orchestration",
    )
    op.execute("GRANT SELECT ON orchestration.policy_gate TO symphony_auditor")
    op.execute("INSERT INTO orchestration.policy_gate DEFAULT VALUES")
    op.create_table(
        "policy_versions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'ACTIVE'"), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("grace_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_db_user", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False),
        sa.Column("db_user", sa.Text(), nullable=False),
        sa.Column("xact_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "octet_length(id) BETWEEN 1 AND 1000", name=op.f("ck_policy_versions_id")
        ),
        sa.CheckConstraint(
            "octet_length(description) BETWEEN 1 AND 4000",
            name=op.f("ck_policy_versions_description"),
        ),
        sa.CheckConstraint(
            "octet_length(created_by) BETWEEN 1 AND 1000",
            name=op.f("ck_policy_versions_created_by"),
        ),
        sa.CheckConstraint(
            "octet_length(checksum) = 64 AND checksum ~ '^[0-9a-f]*$'",
            name=op.f("ck_policy_versions_checksum"),
        ),
        sa.CheckConstraint(
            "status IN ('ACTIVE', 'GRACE', 'RETIRED')", name=op.f("ck_policy_versions_status")
        ),
        sa.CheckConstraint(
            "(status = 'ACTIVE') = (grace_expires_at IS NULL)"
            " AND (status = 'RETIRED') = (retired_at IS NOT NULL)",
            name=op.f("ck_policy_versions_times"),
        ),
        sa.CheckConstraint(
            "extract(year FROM activated_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM activated_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM grace_expires_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM grace_expires_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM retired_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM retired_at AT TIME ZONE 'UTC') <= 9998"
            " AND extract(year FROM created_at AT TIME ZONE 'UTC') >= 1"
            " AND extract(year FROM created_at AT TIME ZONE 'UTC') <= 9998",
            name=op.f("ck_policy_versions_years"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_versions")),
        schema="orchestration",
    )
    op.create_index(
        "uq_policy_versions_active",
        "policy_versions",
        ["status"],
        unique=True,
        schema="orchestration",
        postgresql_where=sa.text("status = 'ACTIVE'"),
    )
    op.create_index(
        "uq_policy_versions_grace",
        "policy_versions",
        ["status"],
        unique=True,
        schema="orchestration",
        postgresql_where=sa.text("status = 'GRACE'"),
    )
    op.execute(
        """
GRANT SELECT ON orchestration.policy_versions
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE VIEW orchestration.accepted_policy_versions
WITH (security_invoker = true)
AS
SELECT id, checksum, status, activated_at, grace_expires_at
FROM orchestration.policy_versions
WHERE status = 'ACTIVE'
   OR (status = 'GRACE' AND grace_expires_at > clock_timestamp());

ALTER VIEW orchestration.accepted_policy_versions OWNER TO symphony_owner;
GRANT SELECT ON orchestration.accepted_policy_versions
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
-- No role may select from this view. It defines the row type that the functions return.
CREATE VIEW orchestration.policy_version_result
WITH (security_invoker = true)
AS
SELECT p.*, false AS replayed
FROM orchestration.policy_versions p;

ALTER VIEW orchestration.policy_version_result OWNER TO symphony_owner
"""
    )

    op.execute(
        """
CREATE FUNCTION orchestration.guard_policy_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its nine checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_detail jsonb := jsonb_build_object('id', NEW.id, 'status', NEW.status);
  v_active text;
  v_newest timestamptz;
  v_next timestamptz;
  v_changed boolean;
  v_grace_wrong boolean;
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT v_replica THEN
      NEW.db_user := SESSION_USER;
      NEW.xact_id := pg_current_xact_id()::text::bigint;
      NEW.created_at := coalesce(NEW.created_at, clock_timestamp());
    END IF;
    IF EXISTS (SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.id) THEN
      -- The primary key rejects this row. NOT NULL must not reject it first.
      NEW.activated_at := coalesce(NEW.activated_at, clock_timestamp());
      RETURN NEW;
    END IF;
    IF v_copied THEN
      -- The version may have left ACTIVE since, and it may arrive before older versions.
      RETURN NEW;
    END IF;
    IF NEW.status IS DISTINCT FROM 'ACTIVE' THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-010', 'P7101', 'status of a new policy version must be ACTIVE',
        'policy_versions', v_detail,
        'Call rotate_policy_version, which inserts the version as ACTIVE.',
        'status'
      );
    END IF;
    IF NEW.created_at > clock_timestamp() OR NOT isfinite(NEW.created_at) THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-001', 'P7101', 'created_at must not be in the future', 'policy_versions', v_detail,
        'Leave created_at out: the database sets it.', 'created_at'
      );
    END IF;
    SELECT max(p.activated_at) INTO v_newest FROM orchestration.policy_versions p;
    v_next := greatest(clock_timestamp(), v_newest + interval '1 microsecond');
    NEW.activated_at := coalesce(NEW.activated_at, v_next);
    IF NEW.activated_at > v_next OR NEW.activated_at <= v_newest
      OR NOT isfinite(NEW.activated_at) THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-009', 'P7101',
        'activated_at must be later than in any other version and not in the future',
        'policy_versions', v_detail || jsonb_build_object('activated_at', NEW.activated_at),
        'Leave activated_at out: the database sets it.', 'activated_at'
      );
    END IF;
    SELECT p.id INTO v_active FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE';
    IF v_active IS NOT NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-005', 'P7104', format('policy version %s is already ACTIVE', v_active),
        'policy_versions', v_detail || jsonb_build_object('active', v_active),
        'Call rotate_policy_version to replace the ACTIVE version.', 'status'
      );
    END IF;
    RETURN NEW;
  END IF;

  v_detail := jsonb_build_object('id', OLD.id, 'from', OLD.status, 'to', NEW.status);
  v_changed := (NEW.id, NEW.description, NEW.checksum, NEW.activated_at, NEW.created_at,
      NEW.created_by, NEW.db_user, NEW.xact_id)
    IS DISTINCT FROM (OLD.id, OLD.description, OLD.checksum, OLD.activated_at, OLD.created_at,
      OLD.created_by, OLD.db_user, OLD.xact_id);
  v_grace_wrong :=
    NEW.status = 'GRACE' AND NOT coalesce(isfinite(NEW.grace_expires_at), false)
    OR NEW.status = 'ACTIVE' AND NEW.grace_expires_at IS NOT NULL
    OR OLD.status = 'GRACE'
      AND (NEW.grace_expires_at IS NULL OR NEW.grace_expires_at > OLD.grace_expires_at);
  IF v_changed THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-001', 'P7101', 'the id, content and origin of a policy version must not change',
      'policy_versions', v_detail, 'Call rotate_policy_version to add a new version.'
    );
  END IF;
  IF OLD.status = 'RETIRED' AND NEW IS DISTINCT FROM OLD THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-002', 'P7101', 'a RETIRED policy version must not change', 'policy_versions',
      v_detail, 'Call rotate_policy_version to add a new version.', 'status'
    );
  END IF;
  IF OLD.status = 'GRACE' AND NEW.status = 'ACTIVE' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-003', 'P7101', 'status must not change from GRACE to ACTIVE', 'policy_versions',
      v_detail, 'Call rotate_policy_version to add the old content as a new version.', 'status'
    );
  END IF;
  IF OLD.status = 'ACTIVE' AND NEW.status = 'RETIRED' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-004', 'P7101', 'status must not change from ACTIVE to RETIRED without GRACE between',
      'policy_versions', v_detail,
      'Call rotate_policy_version with a p_grace of zero, then retire_policy_version.', 'status'
    );
  END IF;
  IF v_grace_wrong THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-011', 'P7101',
      'grace_expires_at must be set when status becomes GRACE and must not become later',
      'policy_versions', v_detail, 'Set grace_expires_at to its present value or an earlier time.',
      'grace_expires_at'
    );
  END IF;
  IF NOT v_replica THEN
    NEW.retired_at := CASE
      WHEN NEW.status <> 'RETIRED' THEN NULL
      WHEN OLD.status = 'RETIRED' THEN OLD.retired_at
      ELSE clock_timestamp()
    END;
    -- Null if a rotation retired the version. Only the login that called retire_policy_version can
    -- repeat that call.
    NEW.retired_db_user := CASE
      WHEN NEW.status <> 'RETIRED' OR NEW.retired_db_user IS NULL THEN NULL
      WHEN OLD.status = 'RETIRED' THEN OLD.retired_db_user
      ELSE SESSION_USER
    END;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_policy_version FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.check_active_policy_remains() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE') THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-007', 'P7103', 'no ACTIVE policy version would remain', 'policy_versions',
      jsonb_build_object('id', NEW.id),
      'Call rotate_policy_version to replace the ACTIVE version.', 'status'
    );
  END IF;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.check_active_policy_remains OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.check_active_policy_remains FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_policy_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- A rotation updates and inserts in one statement, and the audit log gets one entry for it. Rows that
-- one statement wrote have the same transaction (xmin) and command number (cmin). The command number
-- of a row with an xmax of another transaction belongs to that transaction and is not used.
BEGIN
  IF EXISTS (
    SELECT FROM inserted i
    JOIN orchestration.policy_versions n ON n.id = i.id
    WHERE n IS DISTINCT FROM i
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'a statement must not insert a policy version and change it',
      'policy_versions', '{}', 'Use a separate statement for each change.', 'id'
    );
  END IF;
  -- If the statement also updated versions, record_policy_change records both.
  INSERT INTO orchestration.audit_log (action, table_name, after)
  SELECT 'ROTATE', 'policy_versions', jsonb_build_object(i.id, to_jsonb(i) - 'xact_id')
  FROM inserted i
  JOIN orchestration.policy_versions n ON n.id = i.id
  WHERE NOT EXISTS (
    SELECT FROM orchestration.policy_versions d
    WHERE d.id <> n.id
      AND d.xmin = n.xmin
      AND d.cmin = n.cmin
      AND d.xmax IN ('0'::xid, d.xmin)
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_policy_entry OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_policy_entry FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.record_policy_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET timezone = 'UTC'
AS $$
-- Records one entry per statement. If the statement also inserted a version, this is a rotation, and
-- the entry covers the inserted row too. Rows that one statement wrote have the same transaction (xmin)
-- and command number (cmin). The command number of a row with an xmax of another transaction belongs
-- to that transaction and is not used.
DECLARE
  v_action text;
  v_before jsonb;
  v_after jsonb;
  v_entered jsonb;
BEGIN
  IF EXISTS (
    SELECT FROM new_versions n
    JOIN orchestration.policy_versions p ON p.id = n.id
    WHERE p IS DISTINCT FROM n
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-AUD-001', 'P7302', 'a statement must not change a policy version twice',
      'policy_versions', '{}', 'Use a separate statement for each change.', 'id'
    );
  END IF;
  SELECT CASE
           WHEN bool_or(o.status = 'ACTIVE' AND n.status = 'GRACE') THEN 'DEMOTE'
           WHEN bool_or(n.status <> o.status) THEN 'RETIRE'
           ELSE 'SHORTEN'
         END,
         jsonb_object_agg(o.id, to_jsonb(o) - 'xact_id'),
         jsonb_object_agg(n.id, to_jsonb(n) - 'xact_id')
  INTO v_action, v_before, v_after
  FROM old_versions o
  JOIN new_versions n ON n.id = o.id
  WHERE n IS DISTINCT FROM o;
  SELECT jsonb_object_agg(e.id, to_jsonb(e) - 'xact_id') INTO v_entered
  FROM orchestration.policy_versions e
  WHERE e.xmax = '0'::xid
    AND NOT EXISTS (SELECT FROM new_versions n WHERE n.id = e.id)
    AND EXISTS (
      SELECT FROM new_versions n
      JOIN orchestration.policy_versions d ON d.id = n.id
      WHERE d.xmin = e.xmin AND d.cmin = e.cmin AND d.xmax IN ('0'::xid, d.xmin)
    );
  IF v_entered IS NOT NULL THEN
    v_action := 'ROTATE';
    v_after := coalesce(v_after, '{}') || v_entered;
  END IF;
  IF v_after IS NULL THEN
    RETURN NULL;
  END IF;
  INSERT INTO orchestration.audit_log (action, table_name, before, after)
  VALUES (v_action, 'policy_versions', v_before, v_after);
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.record_policy_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.record_policy_change FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER gate BEFORE INSERT OR UPDATE ON orchestration.policy_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.change_gate('policy_gate');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER gate
"""
    )
    op.execute(
        """
CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON orchestration.policy_versions
FOR EACH ROW EXECUTE FUNCTION orchestration.guard_policy_version();
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER guard
"""
    )
    op.execute(
        """
CREATE TRIGGER audit_insert AFTER INSERT ON orchestration.policy_versions
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_entry()
"""
    )
    op.execute(
        """
CREATE TRIGGER audit_update AFTER UPDATE ON orchestration.policy_versions
REFERENCING OLD TABLE AS old_versions NEW TABLE AS new_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.record_policy_change()
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.policy_versions
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102', 'id', 'status');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.policy_versions
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-POL-006', 'P7102');
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
CREATE CONSTRAINT TRIGGER active_remains AFTER INSERT OR UPDATE ON orchestration.policy_versions
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION orchestration.check_active_policy_remains();
ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER active_remains
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.policy_gate
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-008', 'P0001');
ALTER TABLE orchestration.policy_gate ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.policy_gate
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-ATT-008', 'P0001');
ALTER TABLE orchestration.policy_gate ENABLE ALWAYS TRIGGER no_truncate
"""
    )

    op.execute(
        """
CREATE FUNCTION orchestration.require_policy_accepted(p_policy_version_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF octet_length(p_policy_version_id) > 1000 THEN
    PERFORM orchestration.refuse_long_texts(
      'policy_versions', ARRAY['id'], ARRAY[p_policy_version_id]
    );
  END IF;
  PERFORM orchestration.share_gate('policy_gate');
  IF NOT EXISTS (
    SELECT FROM orchestration.accepted_policy_versions a WHERE a.id = p_policy_version_id
  ) THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105',
      format('policy version %s is not accepted', coalesce(p_policy_version_id, 'null')),
      'policy_versions', jsonb_build_object('id', p_policy_version_id),
      'Use a version that accepted_policy_versions lists.', 'id'
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.require_policy_accepted OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.require_policy_accepted FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.require_policy_accepted
TO symphony_ingest, symphony_executor, symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.rotate_policy_version(
  p_id text,
  p_description text,
  p_checksum text,
  p_grace interval,
  p_created_by text DEFAULT SESSION_USER,
  p_expected_active text DEFAULT NULL
) RETURNS SETOF orchestration.policy_version_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
-- Longer than 70 lines because the last statement must make the whole rotation at once.
DECLARE
  v_active text;
  v_expires_at timestamptz;
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'policy_versions', ARRAY['id', 'checksum', 'created_by', 'id'],
    ARRAY[p_id, p_checksum, p_created_by, p_expected_active]
  );
  PERFORM orchestration.refuse_long_texts(
    'policy_versions', ARRAY['description'], ARRAY[p_description], 4000
  );
  -- The grace is compared and added in seconds, because a month counts as 30 days in a comparison and
  -- as a calendar month in an addition. PostgreSQL 17 and later have infinite intervals.
  IF (extract(epoch FROM p_grace) BETWEEN 0 AND 36525 * 86400.0) IS NOT TRUE THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '22023', 'p_grace must be between zero and 36,525 days', 'policy_versions',
      jsonb_build_object('id', p_id, 'grace', p_grace::text),
      'Pass an interval of zero or more, for example 7 days.', 'grace_expires_at'
    );
  END IF;
  PERFORM orchestration.lock_gate('policy_gate');
  -- A repeated call returns the version that the first call inserted, even if a later rotation has
  -- replaced that version since.
  RETURN QUERY
  SELECT p.*, true
  FROM orchestration.policy_versions p
  WHERE p.id = p_id AND p.checksum = p_checksum AND p.db_user = SESSION_USER;
  IF FOUND THEN
    RETURN;
  END IF;
  SELECT p.id INTO v_active FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE';
  IF p_expected_active IS NOT NULL AND v_active IS DISTINCT FROM p_expected_active THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-005', 'P7104',
      format('the ACTIVE policy version is %s, not %s', coalesce(v_active, 'missing'),
        p_expected_active),
      'policy_versions',
      jsonb_build_object('id', p_id, 'active', v_active, 'expected_active', p_expected_active),
      'Read the ACTIVE version and decide again.', 'status'
    );
  END IF;
  IF v_active IS NULL THEN
    RETURN QUERY
    INSERT INTO orchestration.policy_versions (id, description, checksum, created_by)
    VALUES (p_id, p_description, p_checksum, p_created_by)
    RETURNING *, false;
    RETURN;
  END IF;
  v_expires_at := clock_timestamp() + make_interval(secs => extract(epoch FROM p_grace)::float8);
  -- One statement, so that an ACTIVE version exists at its end even under SET CONSTRAINTS IMMEDIATE,
  -- and the audit log gets one entry. The old GRACE version is retired before the ACTIVE version
  -- becomes GRACE.
  RETURN QUERY
  WITH retired AS (
    UPDATE orchestration.policy_versions p
    SET status = 'RETIRED'
    WHERE p.status = 'GRACE'
    RETURNING p.id
  ), demoted AS (
    UPDATE orchestration.policy_versions p
    SET status = 'GRACE', grace_expires_at = v_expires_at
    WHERE p.status = 'ACTIVE' AND (SELECT count(*) FROM retired) >= 0
    RETURNING p.id
  )
  INSERT INTO orchestration.policy_versions (id, description, checksum, created_by)
  SELECT p_id, p_description, p_checksum, p_created_by FROM demoted
  RETURNING *, false;
END
$$;

ALTER FUNCTION orchestration.rotate_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.rotate_policy_version FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.rotate_policy_version TO symphony_control
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.retire_policy_version(p_id text)
RETURNS SETOF orchestration.policy_version_result
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
  v_status text;
  v_retired_db_user text;
BEGIN
  PERFORM orchestration.refuse_long_texts('policy_versions', ARRAY['id'], ARRAY[p_id]);
  PERFORM orchestration.lock_gate('policy_gate');
  SELECT p.status, p.retired_db_user
  INTO v_status, v_retired_db_user
  FROM orchestration.policy_versions p
  WHERE p.id = p_id;
  IF v_status IS NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-ATT-008', 'P7105',
      format('policy version %s does not exist', coalesce(p_id, 'null')), 'policy_versions',
      jsonb_build_object('id', p_id), 'Pass an id that policy_versions contains.', 'id'
    );
  END IF;
  IF v_status = 'ACTIVE' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-007', 'P7103', 'no ACTIVE policy version would remain', 'policy_versions',
      jsonb_build_object('id', p_id),
      'Call rotate_policy_version to replace the ACTIVE version.', 'status'
    );
  END IF;
  IF v_status = 'RETIRED' AND v_retired_db_user = SESSION_USER THEN
    -- The same login repeats its call.
    RETURN QUERY SELECT p.*, true FROM orchestration.policy_versions p WHERE p.id = p_id;
    RETURN;
  END IF;
  IF v_status = 'RETIRED' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-002', 'P7101', format('policy version %s is already RETIRED', p_id),
      'policy_versions', jsonb_build_object('id', p_id, 'from', v_status, 'to', 'RETIRED'),
      'Another login or a rotation has retired it. No further call is needed.', 'status'
    );
  END IF;
  RETURN QUERY
  UPDATE orchestration.policy_versions p
  SET status = 'RETIRED', retired_db_user = SESSION_USER
  WHERE p.id = p_id
  RETURNING p.*, false;
END
$$;

ALTER FUNCTION orchestration.retire_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.retire_policy_version FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.retire_policy_version TO symphony_control
"""
    )
    op.execute("UPDATE orchestration.schema_revision SET revision = '0004'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    if context.get_x_argument(as_dictionary=True).get("destroy-evidence") != "yes":
        op.execute(
            """
DO $$
BEGIN
  IF EXISTS (SELECT FROM orchestration.policy_versions) THEN
    RAISE EXCEPTION 'policy_versions contains evidence; to destroy it, pass -x destroy-evidence=yes'
      USING ERRCODE = 'dependent_objects_still_exist';
  END IF;
END
$$
"""
        )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.retire_policy_version")
    op.execute("DROP FUNCTION orchestration.rotate_policy_version")
    op.execute("DROP FUNCTION orchestration.require_policy_accepted")
    op.execute("DROP VIEW orchestration.policy_version_result")
    op.execute("DROP VIEW orchestration.accepted_policy_versions")
    op.drop_table("policy_versions", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.check_active_policy_remains")
    op.execute("DROP FUNCTION orchestration.record_policy_change")
    op.execute("DROP FUNCTION orchestration.record_policy_entry")
    op.execute("DROP FUNCTION orchestration.guard_policy_version")
    op.drop_table("policy_gate", schema="orchestration")
    op.execute("UPDATE orchestration.schema_revision SET revision = '0003'")
    op.execute("RESET ROLE")
