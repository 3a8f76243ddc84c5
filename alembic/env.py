"""Runs the revisions of this project against DATABASE_URL, or else the development server.

In a host's environment the host's own env.py runs instead: nothing here may be needed for the
revisions to be right, only for their safety (one upgrade at a time, bounded waits) and for a
version table that lives in our schema. Commands that only look (current, check, history) write
nothing and wait for nobody. docs/migrations.md tells a DBA the same.
"""

import logging
import os
import time
from logging.config import fileConfig
from pathlib import Path

import tenacity
from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, make_url, pool, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from orchestration import models
from orchestration.database import normalize_url

config = context.config
if config.config_file_name is not None and config.attributes.get("configure_logger", True):
    fileConfig(config.config_file_name, disable_existing_loggers=False)

SCHEMA = models.Base.metadata.schema
OLDEST_SERVER = 150000
# Of this project alone: 'orch' in ASCII, then 'migr'.
UPGRADE_LOCK = 0x6F7263686D696772
LOCK_WAIT_SECONDS = 600
# Who queues behind a revision that waits is not to wait longer than this, nor be refused for it:
# rotating and revoking give up after 2 s, our engines after 10. Under another search_path Alembic's
# own statements would take up operators that anybody has put into `public`.
SETTINGS = """
SET search_path = pg_catalog;
SET lock_timeout = '1s';
SET statement_timeout = '10min'
"""
LOCK_TRIES = 5
LOCKED_OUT = {"55P03", "40P01"}
DEVELOPMENT_FOLDER = Path(config.config_file_name or ".").resolve().parent / ".db"

# Alembic looks for its version table before the first revision can make a schema for it.
PROLOGUE = """
DO $$
DECLARE
  v_login text := pg_catalog.quote_ident(current_user);
  v_database text := pg_catalog.quote_ident(pg_catalog.current_database());
  v_schema_owner name;
BEGIN
  -- Before anybody is told to grant it; the first revision judges all six.
  IF EXISTS (
    SELECT FROM pg_catalog.pg_roles
    WHERE rolname = 'symphony_owner'
      AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
        OR NOT rolinherit)
  ) THEN
    RAISE EXCEPTION 'The role symphony_owner, which exists already, is not as ours are: '
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
        RAISE EXCEPTION 'The login % makes roles and needs CREATEROLE: ALTER ROLE % CREATEROLE',
          v_login, v_login USING ERRCODE = 'insufficient_privilege';
    END;
  END LOOP;
  -- From 16 on whoever makes a role may grant it, but is no member that can act as it. The version
  -- table is read with inherited rights.
  FOR attempt IN 1 .. 50 LOOP
    EXIT WHEN pg_catalog.pg_has_role('symphony_owner', 'USAGE') AND pg_catalog.pg_has_role(
      'symphony_owner', CASE
        WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END);
    BEGIN
      IF current_setting('server_version_num')::integer < 160000 THEN
        GRANT symphony_owner TO CURRENT_USER;
        IF NOT pg_catalog.pg_has_role('symphony_owner', 'USAGE') THEN
          RAISE EXCEPTION 'The login % needs the rights of its roles: ALTER ROLE % INHERIT',
            v_login, v_login USING ERRCODE = 'invalid_grant_operation';
        END IF;
      ELSE
        EXECUTE 'GRANT symphony_owner TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
      END IF;
    EXCEPTION
      WHEN duplicate_object OR unique_violation OR internal_error THEN
        PERFORM pg_catalog.pg_sleep(0.05);
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'The login % has to act as symphony_owner, which exists already: '
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
    RAISE EXCEPTION 'The schema orchestration belongs to %: the upgrade makes its own, so rename '
      'it or DROP SCHEMA orchestration', pg_catalog.quote_ident(v_schema_owner)
      USING ERRCODE = 'duplicate_schema';
  END IF;
END
$$
"""
# Default privileges of the login may have opened it to others.
VERSION_TABLE_TO_OWNER = """
DO $$
DECLARE
  v_grantee text;
BEGIN
  ALTER TABLE orchestration.alembic_version OWNER TO symphony_owner;
  FOR v_grantee IN
    SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
    FROM pg_catalog.pg_class c
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x
    WHERE c.oid = 'orchestration.alembic_version'::regclass
      AND x.grantee <> c.relowner
  LOOP
    EXECUTE 'REVOKE ALL ON orchestration.alembic_version FROM ' || v_grantee;
  END LOOP;
END
$$
"""
# A script cannot wait for its turn: a waiter's snapshot and the CREATE INDEX CONCURRENTLY of the
# upgrade before it would wait for each other.
SCRIPT_LOCK = """
DO $$
BEGIN
  IF NOT pg_catalog.pg_try_advisory_lock(:key) THEN
    RAISE EXCEPTION 'Another upgrade of this database is under way: load this script after its end'
      USING ERRCODE = 'lock_not_available';
  END IF;
END
$$
"""
# What an earlier downgrade left of the version table goes: Alembic's script makes it anew.
SCRIPT_START = """
DO $$
DECLARE
  v_start text := :start;
  v_found text := 'base';
BEGIN
  IF pg_catalog.to_regclass('orchestration.alembic_version') IS NOT NULL THEN
    SELECT coalesce(min(version_num), 'base') INTO v_found FROM orchestration.alembic_version;
    IF v_found = 'base' THEN
      DROP TABLE orchestration.alembic_version;
    END IF;
  END IF;
  IF v_found <> v_start THEN
    RAISE EXCEPTION 'This script starts at % and the database is at %: write one that starts there',
      v_start, v_found USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
END
$$
"""
SCRIPT_END = """
RESET search_path;
RESET lock_timeout;
RESET statement_timeout;
DO $$ BEGIN PERFORM pg_catalog.pg_advisory_unlock(:key); END $$
"""
GAVE_UP = (
    f"Others held what the next revision has to lock through {LOCK_TRIES} tries: nothing of it is "
    "done, and the same command goes on from there"
)
UNREADABLE = (
    "This login may not read orchestration.alembic_version: use one that is a member of "
    "symphony_owner, or read orchestration.schema_revision, as every runtime role may"
)


def server_url() -> str:
    """DATABASE_URL, else a running development server; refused where there is neither."""
    if url := config.attributes.get("url") or os.environ.get("DATABASE_URL"):
        return str(url)
    from orchestration.testing import embedded

    if url := embedded.development_url(DEVELOPMENT_FOLDER):
        shown = make_url(url).render_as_string(hide_password=True)
        config.print_stdout("Using the development server: %s", shown)
        return url
    raise CommandError(
        "No database: set DATABASE_URL (postgresql+psycopg://...), or start the development server "
        "with `make db`"
    )


def changes_the_database() -> bool:
    """Only upgrade, downgrade and stamp have a destination; the other commands look."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def only_ours(name: str | None, type_: str, parent_names: object) -> bool:
    return type_ != "schema" or name == SCHEMA


def own_version_table(
    *, ctx: MigrationContext, step: MigrationInfo, heads: set[str], run_args: object
) -> None:
    """Whoever is a member of symphony_owner may upgrade next, not only who was first."""
    if not step.source_revision_ids:
        ctx.execute(VERSION_TABLE_TO_OWNER)


def configure(**options: object) -> None:
    context.configure(
        target_metadata=models.Base.metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=only_ours,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=own_version_table,
        **options,
    )


def run_offline() -> None:
    start = context.get_starting_revision_argument()
    script = ScriptDirectory.from_config(config).get_revision(start or "base")
    configure(
        url=make_url("postgresql+psycopg://"),
        literal_binds=True,
        # A script has no parameters: under the driver's own style every % would be doubled.
        dialect_opts={"paramstyle": "named"},
    )
    # Without it psql would go on after a refusal, with the next revision.
    context.get_context().impl.static_output("\\set ON_ERROR_STOP on")
    context.execute(SETTINGS)
    context.execute(text(SCRIPT_LOCK).bindparams(key=UPGRADE_LOCK))
    context.execute(PROLOGUE)
    context.execute(text(SCRIPT_START).bindparams(start=script.revision if script else "base"))
    with context.begin_transaction():
        context.run_migrations()
    context.execute(text(SCRIPT_END).bindparams(key=UPGRADE_LOCK))


def take_upgrade_lock(connection: Connection) -> None:
    """Polled, not awaited: a waiter inside pg_advisory_lock would hold a snapshot against the
    holder's CREATE INDEX CONCURRENTLY, and both would be a deadlock."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": UPGRADE_LOCK}):
        if time.monotonic() > deadline:
            raise CommandError("Another upgrade of this database has not finished in 10 minutes")
        time.sleep(0.1)


def connect() -> Connection:
    try:
        url = normalize_url(server_url())
    except ArgumentError as error:
        raise CommandError(str(error)) from error
    try:
        engine = create_engine(
            url, poolclass=pool.NullPool, connect_args={"client_encoding": "utf8"}
        )
        connection = engine.connect()
    except DBAPIError as error:
        raise CommandError(f"The server cannot be reached: {error.orig}") from error
    version = connection.scalar(text("SELECT current_setting('server_version_num')::integer"))
    connection.rollback()
    if version < OLDEST_SERVER:
        connection.close()
        raise CommandError(
            f"PostgreSQL 15 or later is needed, and this server is {version // 10000}"
        )
    return connection


def look(connection: Connection) -> None:
    connection.execute(text("SET default_transaction_read_only = on"))
    connection.commit()
    configure(connection=connection, dont_mutate=True)
    with context.begin_transaction():
        context.run_migrations()


def change(connection: Connection) -> None:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    take_upgrade_lock(connection)
    connection.execute(text(SETTINGS))
    connection.execute(text(PROLOGUE))
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(was_locked_out),
        stop=tenacity.stop_after_attempt(LOCK_TRIES),
        # Who queued behind the last try is to have gone before the next.
        wait=tenacity.wait_random(0.5, 1.5),
        before_sleep=tell_of_another_try,
        reraise=True,
    )
    tries(migrate, connection)


def migrate(connection: Connection) -> None:
    """From wherever the database stands: a revision that is locked out leaves those before it."""
    connection.rollback()
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


def sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def was_locked_out(error: BaseException) -> bool:
    return sqlstate(error) in LOCKED_OUT


def tell_of_another_try(state: tenacity.RetryCallState) -> None:
    logging.getLogger("alembic.env").info(
        "Others hold what the revision has to lock: nothing of it is done, try %s of %s follows",
        state.attempt_number + 1,
        LOCK_TRIES,
    )


def run_online() -> None:
    changing = changes_the_database()
    work = change if changing else look
    with connect() as connection:
        try:
            work(connection)
        except DBAPIError as error:
            # The revision's own words, without the statement and where it stood.
            diagnosis = getattr(error.orig, "diag", None)
            words = diagnosis.message_primary if diagnosis is not None else None
            if was_locked_out(error):
                words = GAVE_UP
            elif not changing and sqlstate(error) == "42501":
                words = UNREADABLE
            raise CommandError(words or str(error.orig)) from error


if context.is_offline_mode():
    run_offline()
else:
    run_online()
