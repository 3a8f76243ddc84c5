"""Create the roles, the schema, its revision row and the helpers that all later revisions use.

Serves: every invariant. `raise_invariant` raises the errors, `refuse_change` guards append-only
tables, `share_gate` and `change_gate` lock the gates for readers and for changes, and
`copies_a_subscription` lets the guards recognize rows from a subscription. The guards and the counter
of `schema_revision` serve INV-AUD-001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = ("orchestration",)
depends_on = None

OWNER_AND_SCHEMA = """
DO $$
-- env.py runs this as well, because Alembic looks for its version table before the first revision can
-- create a schema for it. Roles belong to the server, so an upgrade of another database can create
-- them at the same moment. CREATE ROLE then fails with a unique violation or because a catalogue row
-- was updated concurrently.
DECLARE
  v_login text := pg_catalog.quote_ident(current_user);
  v_database text := pg_catalog.quote_ident(pg_catalog.current_database());
  v_schema_owner name;
BEGIN
  -- This check comes first. Otherwise a later error could ask for a grant of a role that the upgrade
  -- then rejects.
  IF EXISTS (
    SELECT FROM pg_catalog.pg_roles
    WHERE rolname = 'symphony_owner'
      AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
        OR NOT rolinherit)
  ) THEN
    RAISE EXCEPTION 'The existing role symphony_owner has attributes that it must not have: '
      'ALTER ROLE symphony_owner NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION '
      'NOBYPASSRLS INHERIT'
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  FOR attempt IN 1 .. 50 LOOP
    EXIT WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'symphony_owner');
    BEGIN
      CREATE ROLE symphony_owner NOLOGIN;
    EXCEPTION
      WHEN duplicate_object OR unique_violation OR internal_error THEN
        PERFORM pg_catalog.pg_sleep(0.05);
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'The login % must create roles and lacks CREATEROLE: ALTER ROLE % CREATEROLE',
          v_login, v_login USING ERRCODE = 'insufficient_privilege';
    END;
  END LOOP;
  -- From PostgreSQL 16 on, the creator of a role can grant it but cannot yet act as it.
  FOR attempt IN 1 .. 50 LOOP
    EXIT WHEN pg_catalog.pg_has_role('symphony_owner', CASE
      WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END);
    BEGIN
      GRANT symphony_owner TO CURRENT_USER;
    EXCEPTION
      WHEN duplicate_object OR unique_violation OR internal_error THEN
        PERFORM pg_catalog.pg_sleep(0.05);
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'The login % must be able to act as the existing role symphony_owner: '
          'GRANT symphony_owner TO %', v_login, v_login || CASE
            WHEN current_setting('server_version_num')::integer < 160000 THEN ''
            ELSE ' WITH INHERIT TRUE' END
          USING ERRCODE = 'insufficient_privilege';
    END;
  END LOOP;
  SELECT pg_catalog.pg_get_userbyid(nspowner) INTO v_schema_owner
  FROM pg_catalog.pg_namespace
  WHERE nspname = 'orchestration';
  IF v_schema_owner IS NULL THEN
    BEGIN
      CREATE SCHEMA orchestration AUTHORIZATION symphony_owner;
    EXCEPTION WHEN insufficient_privilege THEN
      RAISE EXCEPTION 'The login % needs CREATE on the database: GRANT CREATE ON DATABASE % TO %',
        v_login, v_database, v_login USING ERRCODE = 'insufficient_privilege';
    END;
  ELSIF v_schema_owner <> 'symphony_owner' THEN
    RAISE EXCEPTION 'The schema orchestration belongs to %, not to symphony_owner: rename the schema '
      'or DROP SCHEMA orchestration', pg_catalog.quote_ident(v_schema_owner)
      USING ERRCODE = 'duplicate_schema';
  END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(
        """
DO $$
BEGIN
  IF current_setting('server_version_num')::integer < 150000 THEN
    RAISE EXCEPTION 'PostgreSQL 15 or later is required' USING ERRCODE = 'feature_not_supported';
  END IF;
  IF current_setting('server_encoding') <> 'UTF8' THEN
    RAISE EXCEPTION 'The database must be encoded in UTF8, because hashes are computed over UTF-8'
      USING ERRCODE = 'feature_not_supported';
  END IF;
END
$$
"""
    )
    op.execute(
        """
DO $$
-- Existing roles are accepted only if they have the attributes that this revision gives to new ones,
-- and no memberships.
DECLARE
  v_role text;
  v_other text;
BEGIN
  SELECT r.rolname INTO v_role
  FROM pg_catalog.pg_roles r
  WHERE r.rolname IN ('symphony_owner', 'symphony_ingest', 'symphony_executor', 'symphony_control',
      'symphony_readonly', 'symphony_auditor')
    AND (r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication
      OR r.rolbypassrls OR NOT r.rolinherit)
  ORDER BY r.rolname
  LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'The existing role % has attributes that it must not have: ALTER ROLE % NOLOGIN '
      'NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS INHERIT', v_role, v_role
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  SELECT m.rolname, r.rolname INTO v_role, v_other
  FROM pg_catalog.pg_auth_members a
  JOIN pg_catalog.pg_roles m ON m.oid = a.member
  JOIN pg_catalog.pg_roles r ON r.oid = a.roleid
  WHERE m.rolname IN ('symphony_owner', 'symphony_ingest', 'symphony_executor', 'symphony_control',
      'symphony_readonly', 'symphony_auditor')
  ORDER BY m.rolname, r.rolname
  LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'The existing role % must not be a member of another role: REVOKE % FROM %',
      v_role, pg_catalog.quote_ident(v_other), v_role
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
END
$$
"""
    )
    op.execute(OWNER_AND_SCHEMA)
    op.execute(
        """
DO $$
DECLARE
  v_login text := pg_catalog.quote_ident(current_user);
  v_role text;
BEGIN
  FOREACH v_role IN ARRAY ARRAY['symphony_ingest', 'symphony_executor', 'symphony_control',
    'symphony_readonly', 'symphony_auditor']
  LOOP
    FOR attempt IN 1 .. 50 LOOP
      EXIT WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = v_role);
      BEGIN
        EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', v_role);
      EXCEPTION
        WHEN duplicate_object OR unique_violation OR internal_error THEN
          PERFORM pg_catalog.pg_sleep(0.05);
        WHEN insufficient_privilege THEN
          RAISE EXCEPTION 'The login % must create roles and lacks CREATEROLE: ALTER ROLE % CREATEROLE',
            v_login, v_login USING ERRCODE = 'insufficient_privilege';
      END;
    END LOOP;
  END LOOP;
END
$$
"""
    )
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute(
        """
GRANT USAGE ON SCHEMA orchestration
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.create_table(
        "schema_revision",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_schema_revision_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_schema_revision")),
        schema="orchestration",
    )
    op.execute(
        """
GRANT SELECT ON orchestration.schema_revision
TO symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute("INSERT INTO orchestration.schema_revision (revision) VALUES ('0001')")
    op.execute(
        """
CREATE FUNCTION orchestration.raise_invariant(
  p_invariant text,
  p_errcode text,
  p_message text,
  p_table text,
  p_detail jsonb,
  p_hint text,
  p_column text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
DECLARE
  -- The message and DETAIL can contain values that the caller passed. They are cut to 200 characters,
  -- so that a caller cannot fill the log.
  v_message text := left(p_invariant || ': ' || p_message, 200);
  v_detail jsonb := p_detail;
BEGIN
  IF octet_length(p_detail::text) > 200 THEN
    SELECT jsonb_object_agg(
      d.key,
      CASE jsonb_typeof(d.value)
        WHEN 'string' THEN to_jsonb(left(d.value #>> '{}', 200))
        ELSE d.value
      END
    )
    INTO v_detail
    FROM jsonb_each(p_detail) d;
  END IF;
  -- RAISE fails with 22004 if an option is null, so COLUMN is left out if there is none.
  IF p_column IS NULL THEN
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = v_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      DETAIL = v_detail::text,
      HINT = p_hint;
  ELSE
    RAISE EXCEPTION USING
      ERRCODE = p_errcode,
      MESSAGE = v_message,
      CONSTRAINT = p_invariant,
      SCHEMA = 'orchestration',
      TABLE = p_table,
      COLUMN = p_column,
      DETAIL = v_detail::text,
      HINT = p_hint;
  END IF;
END
$$;

ALTER FUNCTION orchestration.raise_invariant OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.raise_invariant FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.refuse_long_texts(
  p_table text,
  p_columns text[],
  p_values text[],
  p_limit integer DEFAULT 1000
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Call it before taking a lock: the CHECK constraints of the table reject a long text only later.
BEGIN
  FOR i IN 1 .. cardinality(p_values) LOOP
    IF octet_length(p_values[i]) > p_limit THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-001', '23514', format('%s must be at most %s octets', p_columns[i], p_limit),
        p_table,
        jsonb_build_object('column', p_columns[i], 'octets', octet_length(p_values[i])),
        'Shorten the text.', p_columns[i]
      );
    END IF;
  END LOOP;
END
$$;

ALTER FUNCTION orchestration.refuse_long_texts OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_long_texts FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.refuse_element(
  p_table text,
  p_ordinal bigint,
  p_missing text,
  p_malformed text
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  IF p_missing IS NOT NULL THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-001', '23502', format('%s must not be null', p_missing), p_table,
      jsonb_build_object('ordinal', p_ordinal, 'column', p_missing),
      format('Set %s in every element.', p_missing), p_missing
    );
  END IF;
  PERFORM orchestration.raise_invariant(
    'INV-API-001', '23514', format('%s is out of bounds or malformed', p_malformed), p_table,
    jsonb_build_object('ordinal', p_ordinal, 'column', p_malformed),
    'Text keys must have 1 to 1,000 octets, free texts at most 4,000. Payloads must be JSON objects'
      ' of at most 1,000,000 octets.',
    p_malformed
  );
END
$$;

ALTER FUNCTION orchestration.refuse_element OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_element FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.refuse_unreadable(p_table text, p_sqlstate text, p_message text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The error of the server is replaced because its CONTEXT can quote the whole value.
BEGIN
  PERFORM orchestration.raise_invariant(
    'INV-API-001',
    CASE
      WHEN p_sqlstate IN ('22P02', '22003', '22007', '22008', '22P05') THEN p_sqlstate
      ELSE '22023'
    END,
    p_message, p_table, '{}', 'Write each value as valid input for the type of its column.'
  );
END
$$;

ALTER FUNCTION orchestration.refuse_unreadable OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_unreadable FROM PUBLIC
"""
    )
    op.execute(
        """
-- RFC 9562, method 3: 48 bits of milliseconds and 12 bits of their fraction. Both are one number,
-- milliseconds * 4096. It is computed from one reading of the clock, and PostgreSQL can inline it.
CREATE FUNCTION orchestration.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (
  overlay(
    lpad(to_hex((extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0')
    PLACING '7' FROM 13 FOR 0
  ) || substr(gen_random_uuid()::text, 20)
)::uuid;

ALTER FUNCTION orchestration.uuid_v7 OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.uuid_v7 FROM PUBLIC
"""
    )
    op.execute(
        """
-- True in the worker of a subscription. Its rows were checked on the server where they were
-- written. The initial copy loads tables in parallel and rows in any order, and every row arrives
-- after the timestamps that it carries. The guards therefore check only what a row shows by itself.
-- A session that merely sets session_replication_role gets all checks.
CREATE FUNCTION orchestration.copies_a_subscription() RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (
  SELECT FROM pg_stat_subscription s
  WHERE s.pid = pg_backend_pid()
);

ALTER FUNCTION orchestration.copies_a_subscription OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.copies_a_subscription FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.refuse_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Arguments of the trigger: the invariant, the SQLSTATE, and the key columns to show in DETAIL.
DECLARE
  v_row jsonb := CASE WHEN TG_LEVEL = 'ROW' THEN to_jsonb(OLD) END;
  v_detail jsonb := '{}';
BEGIN
  IF v_row IS NOT NULL THEN
    FOR i IN 2 .. TG_NARGS - 1 LOOP
      v_detail := v_detail || jsonb_build_object(TG_ARGV[i], v_row -> TG_ARGV[i]);
    END LOOP;
  END IF;
  PERFORM orchestration.raise_invariant(
    TG_ARGV[0], TG_ARGV[1],
    format('%s of %s is forbidden', TG_OP, TG_TABLE_NAME),
    TG_TABLE_NAME,
    v_detail,
    'Stored rows cannot be changed. Call a function of this schema to record a new row.'
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.refuse_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.refuse_change FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.count_schema_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- The counter makes any two changes of the revision different entries in the audit log.
BEGIN
  NEW.changes := OLD.changes + 1;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.count_schema_change OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.count_schema_change FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE TRIGGER count BEFORE UPDATE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.count_schema_change()
"""
    )
    op.execute(
        """
CREATE TRIGGER no_delete BEFORE DELETE ON orchestration.schema_revision
FOR EACH ROW EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001', 'revision');
ALTER TABLE orchestration.schema_revision ENABLE ALWAYS TRIGGER no_delete
"""
    )
    op.execute(
        """
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON orchestration.schema_revision
FOR EACH STATEMENT EXECUTE FUNCTION orchestration.refuse_change('INV-AUD-001', 'P0001');
ALTER TABLE orchestration.schema_revision ENABLE ALWAYS TRIGGER no_truncate
"""
    )
    op.execute(
        """
-- Limits, for this transaction, how long a client that has stopped responding can hold its locks.
-- idle_in_transaction_session_timeout ends the session of a client that sends nothing.
-- tcp_user_timeout, in milliseconds, ends the session of a client that does not read its reply: a
-- backend that waits to send is not idle, and statement_timeout does not end it. A Unix socket has
-- no such limit and always shows 0.
-- PostgreSQL inlines a SQL-standard body without a SET clause. The callers run in every gated
-- write.
CREATE FUNCTION orchestration.bound_idle_time() RETURNS text
LANGUAGE sql VOLATILE
RETURN concat(
  CASE
    WHEN current_setting('idle_in_transaction_session_timeout') = '10s' THEN NULL
    WHEN current_setting('idle_in_transaction_session_timeout') = '0'
      OR current_setting('idle_in_transaction_session_timeout')::interval > interval '10 seconds'
      THEN set_config('idle_in_transaction_session_timeout', '10s', true)
  END,
  CASE
    WHEN current_setting('tcp_user_timeout')::integer NOT BETWEEN 1 AND 10000
      THEN set_config('tcp_user_timeout', '10000', true)
  END
);

ALTER FUNCTION orchestration.bound_idle_time OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.bound_idle_time FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.gate_holders()
RETURNS TABLE (
  gate text,
  mode text,
  granted boolean,
  pid integer,
  login text,
  application_name text,
  client_addr inet,
  state text,
  transaction_started_at timestamptz,
  waiting_since timestamptz,
  prepared_gid text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because it is one query over five catalogue views.
-- Not SECURITY DEFINER: pg_stat_activity shows client_addr, state and transaction_started_at of
-- another login only to a caller who has pg_read_all_stats, which symphony_owner does not have.
BEGIN
  RETURN QUERY
  WITH holder AS (
    -- A transaction can hold a gate in several modes. Show the mode that it waits for, otherwise the
    -- strongest one that it holds.
    SELECT DISTINCT ON (c.relname, l.virtualtransaction)
           c.relname::text AS gate,
           l.mode,
           -- A session that waits for a row waits for a lock on the other transaction or on the tuple.
           l.granted AND w.pid IS NULL AS granted,
           l.pid,
           coalesce(l.waitstart, w.waitstart) AS waiting_since,
           l.virtualtransaction
    FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    LEFT JOIN pg_locks w
      ON NOT w.granted
     AND w.pid = l.pid
     AND c.relname = 'audit_log_head'
     AND (w.locktype = 'transactionid' OR w.locktype = 'tuple' AND w.relation = c.oid)
    WHERE l.locktype = 'relation'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.mode <> 'AccessShareLock'
      AND c.relnamespace = 'orchestration'::regnamespace
      AND c.relname IN ('kill_switch_gate', 'policy_gate', 'revocation_gate', 'audit_log_head')
    ORDER BY c.relname, l.virtualtransaction, l.granted,
             array_position(
               ARRAY['AccessExclusiveLock', 'ExclusiveLock', 'RowExclusiveLock', 'RowShareLock'],
               l.mode
             )
  )
  SELECT h.gate,
         h.mode,
         h.granted,
         h.pid,
         coalesce(a.usename, p.owner)::text,
         a.application_name,
         a.client_addr,
         a.state,
         coalesce(a.xact_start, p.prepared),
         h.waiting_since,
         p.gid
  FROM holder h
  LEFT JOIN pg_stat_activity a ON a.pid = h.pid
  -- A prepared transaction has no backend. It is found by the lock on its own transaction id.
  LEFT JOIN (
    pg_prepared_xacts p
    JOIN pg_locks x
      ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.granted
  ) ON h.pid IS NULL AND x.virtualtransaction = h.virtualtransaction
  ORDER BY h.gate, h.granted DESC, coalesce(a.xact_start, p.prepared), h.waiting_since, h.pid;
END
$$;

ALTER FUNCTION orchestration.gate_holders OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.gate_holders FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.gate_holders
TO symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.lock_gate(p_gate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A transaction that changes what the gate protects calls this first. The lock waits for the
-- transactions that share the gate (share_gate). A transaction that wants to share it later waits for
-- this one.
DECLARE
  v_invariant text := CASE p_gate
    WHEN 'policy_gate' THEN 'INV-ATT-008'
    WHEN 'revocation_gate' THEN 'INV-ATT-009'
    ELSE 'INV-KIL-002'
  END;
  v_rows bigint;
BEGIN
  PERFORM orchestration.bound_idle_time();
  BEGIN
    EXECUTE format('LOCK TABLE orchestration.%I IN EXCLUSIVE MODE', p_gate);
  EXCEPTION
    WHEN lock_not_available THEN
      PERFORM orchestration.raise_invariant(
        v_invariant, '55P03', format('%s was not released within lock_timeout', p_gate), p_gate,
        jsonb_build_object('gate', p_gate, 'holders', coalesce((
          SELECT jsonb_agg(
            jsonb_strip_nulls(jsonb_build_object(
              'pid', h.pid, 'login', h.login, 'application_name', h.application_name,
              'mode', h.mode, 'transaction_started_at', h.transaction_started_at,
              'prepared_gid', h.prepared_gid
            ))
          )
          FROM (
            SELECT g.*
            FROM orchestration.gate_holders() g
            WHERE g.gate = p_gate AND g.granted
            LIMIT 20
          ) h
        ), '[]')),
        'Try again. gate_holders() shows which sessions hold the gate.'
      );
  END;
  -- A subscription can copy the protected rows before it copies the gate's row.
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN;
  END IF;
  -- Under a snapshot older than the last change this fails with 40001, before anything is checked
  -- against rows that the snapshot does not see.
  EXECUTE format('SELECT FROM orchestration.%I WHERE singleton FOR UPDATE', p_gate);
  GET DIAGNOSTICS v_rows = ROW_COUNT;
  IF v_rows <> 1 THEN
    PERFORM orchestration.raise_invariant(
      'INV-API-002', 'P0002', format('%s has no row', p_gate), p_gate, '{}',
      format('As symphony_owner, run: INSERT INTO orchestration.%I DEFAULT VALUES', p_gate)
    );
  END IF;
END
$$;

ALTER FUNCTION orchestration.lock_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.lock_gate FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.change_gate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Argument of the trigger: the gate. The lock waits for the transactions that share it. The update of
-- the row makes a transaction with an older snapshot fail with 40001 when it shares the gate.
BEGIN
  PERFORM orchestration.lock_gate(TG_ARGV[0]);
  IF current_setting('session_replication_role') = 'replica' THEN
    RETURN NULL;
  END IF;
  EXECUTE format(
    'UPDATE orchestration.%I SET changes = changes + 1, changed_at = clock_timestamp()',
    TG_ARGV[0]
  );
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.change_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.change_gate FROM PUBLIC
"""
    )
    op.execute(
        """
CREATE FUNCTION orchestration.share_gate(p_gate text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- A transaction that checks what the gate protects calls this first. Such transactions share the gate.
-- A change locks it exclusively (lock_gate), so no change commits between a check and the commit of
-- the transaction that made it.
DECLARE
  -- If the client stops responding in this transaction, every change of the gate waits for it.
  v_bound text := orchestration.bound_idle_time();
  v_rows bigint;
BEGIN
  -- Static statements, because every gated write comes here: EXECUTE costs about 4 us more per call.
  CASE p_gate
    WHEN 'kill_switch_gate' THEN
      LOCK TABLE orchestration.kill_switch_gate IN ROW SHARE MODE;
    WHEN 'policy_gate' THEN
      LOCK TABLE orchestration.policy_gate IN ROW SHARE MODE;
    WHEN 'revocation_gate' THEN
      LOCK TABLE orchestration.revocation_gate IN ROW SHARE MODE;
  END CASE;
  -- A snapshot that was taken before the lock does not see the changes that committed in between.
  -- Every change updates the gate's row, so locking the row fails with 40001 under such a snapshot.
  IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    EXECUTE format('SELECT FROM orchestration.%I WHERE singleton FOR SHARE', p_gate);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows <> 1 THEN
      PERFORM orchestration.raise_invariant(
        'INV-API-002', 'P0002', format('%s has no row', p_gate), p_gate, '{}',
        format('As symphony_owner, run: INSERT INTO orchestration.%I DEFAULT VALUES', p_gate)
      );
    END IF;
  END IF;
END
$$;

ALTER FUNCTION orchestration.share_gate OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.share_gate FROM PUBLIC
"""
    )
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("DROP FUNCTION orchestration.share_gate")
    op.execute("DROP FUNCTION orchestration.change_gate")
    op.execute("DROP FUNCTION orchestration.lock_gate")
    op.execute("DROP FUNCTION orchestration.gate_holders")
    op.execute("DROP FUNCTION orchestration.bound_idle_time")
    op.execute("DROP FUNCTION orchestration.copies_a_subscription")
    op.execute("DROP FUNCTION orchestration.uuid_v7")
    op.execute("DROP FUNCTION orchestration.refuse_unreadable")
    op.execute("DROP FUNCTION orchestration.refuse_element")
    op.execute("DROP FUNCTION orchestration.refuse_long_texts")
    op.execute("DROP FUNCTION orchestration.raise_invariant")
    op.drop_table("schema_revision", schema="orchestration")
    op.execute("DROP FUNCTION orchestration.count_schema_change")
    op.execute("DROP FUNCTION orchestration.refuse_change")
    op.execute(
        """
REVOKE USAGE ON SCHEMA orchestration
FROM symphony_ingest, symphony_executor, symphony_control, symphony_readonly, symphony_auditor
"""
    )
    op.execute("RESET ROLE")
    op.execute(
        """
DO $$
-- The owner, the schema and the version table are kept. A runtime role is kept, with a notice, if
-- another database uses it, if it has members, or if the login cannot drop it.
DECLARE
  v_role text;
  v_members text;
BEGIN
  FOREACH v_role IN ARRAY ARRAY['symphony_ingest', 'symphony_executor', 'symphony_control',
    'symphony_readonly', 'symphony_auditor']
  LOOP
    SELECT string_agg(m.member::regrole::text, ', ') INTO v_members
    FROM pg_catalog.pg_auth_members m
    WHERE m.roleid = v_role::regrole
      AND m.member <> (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user);
    IF v_members IS NOT NULL THEN
      RAISE NOTICE 'role % is kept: its members are %', v_role, v_members;
      CONTINUE;
    END IF;
    BEGIN
      EXECUTE pg_catalog.format('DROP ROLE %I', v_role);
    EXCEPTION
      WHEN dependent_objects_still_exist THEN
        RAISE NOTICE 'role % is kept: another database uses it', v_role;
      WHEN insufficient_privilege THEN
        RAISE NOTICE 'role % is kept: % has no ADMIN on it', v_role, current_user;
    END;
  END LOOP;
END
$$
"""
    )
