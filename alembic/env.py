"""Runs the revisions of this project against DATABASE_URL, or else the development server.

In a host's environment the host's own env.py runs instead: nothing here may be needed for the
revisions to be right, only for their safety (one upgrade at a time, bounded waits) and for a
version table that lives in our schema. Commands that only look (current, check, history) write
nothing and wait for nobody.
"""

import os
import time
from logging.config import fileConfig
from pathlib import Path

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, make_url, pool, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from orchestration import embedded, models
from orchestration.database import normalize_url

config = context.config
if config.config_file_name is not None and config.attributes.get("configure_logger", True):
    fileConfig(config.config_file_name, disable_existing_loggers=False)

SCHEMA = models.Base.metadata.schema
OLDEST_SERVER = 150000
# Of this project alone: 'orch' in ASCII, then 'migr'.
UPGRADE_LOCK = 0x6F7263686D696772
LOCK_WAIT_SECONDS = 600
DEVELOPMENT_FOLDER = Path(config.config_file_name or ".").resolve().parent / ".db"

# Alembic looks for its version table before the first revision can make a schema for it.
PROLOGUE = """
DO $$
BEGIN
  FOR attempt IN 1 .. 50 LOOP
    EXIT WHEN EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'symphony_owner');
    BEGIN
      CREATE ROLE symphony_owner NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation OR internal_error THEN
      PERFORM pg_catalog.pg_sleep(0.05);
    END;
  END LOOP;
  -- From 16 on whoever makes a role may grant it, but is no member that can act as it.
  IF NOT pg_catalog.pg_has_role('symphony_owner', CASE
      WHEN current_setting('server_version_num')::integer < 160000 THEN 'USAGE' ELSE 'SET' END) THEN
    BEGIN
      GRANT symphony_owner TO CURRENT_USER;
    EXCEPTION WHEN insufficient_privilege THEN
      RAISE EXCEPTION 'The login % needs ADMIN on the role symphony_owner, which exists already',
        current_user USING ERRCODE = 'insufficient_privilege';
    END;
  END IF;
  IF pg_catalog.to_regnamespace('orchestration') IS NULL THEN
    CREATE SCHEMA orchestration AUTHORIZATION symphony_owner;
  END IF;
END
$$
"""
EPILOGUE = "ALTER TABLE IF EXISTS orchestration.alembic_version OWNER TO symphony_owner"
UNREADABLE = (
    "This login may not read orchestration.alembic_version: use one that is a member of "
    "symphony_owner, or read orchestration.schema_revision, as every runtime role may"
)


def server_url() -> str:
    """DATABASE_URL, else a running development server; refused where there is neither."""
    if url := config.attributes.get("url") or os.environ.get("DATABASE_URL"):
        return str(url)
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


def configure(**options: object) -> None:
    context.configure(
        target_metadata=models.Base.metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=only_ours,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
        **options,
    )


def run_offline() -> None:
    configure(
        url=make_url("postgresql+psycopg://"),
        literal_binds=True,
        # A script has no parameters: under the driver's own style every % would be doubled.
        dialect_opts={"paramstyle": "named"},
    )
    context.execute(PROLOGUE)
    with context.begin_transaction():
        context.run_migrations()
    context.execute(EPILOGUE)


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
        connection = create_engine(url, poolclass=pool.NullPool).connect()
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
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '10min'"))
    connection.execute(text(PROLOGUE))
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
    connection.execute(text(EPILOGUE))
    connection.commit()


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
            if not changing and getattr(error.orig, "sqlstate", None) == "42501":
                words = UNREADABLE
            raise CommandError(words or str(error.orig)) from error


if context.is_offline_mode():
    run_offline()
else:
    run_online()
