"""Runs Alembic's commands safely, for `alembic/env.py`.

Only one upgrade runs at a time, every wait has a limit, and each refusal is one sentence.
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tenacity
from alembic import context
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, TextClause, create_engine, make_url, pool, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from orchestration.database import normalize_url
from orchestration.testing import embedded

OLDEST_SERVER = 150000
UPGRADE_LOCK = 0x6F7263686D696772
"""The key of the advisory lock that an upgrade takes: "orchmigr" in ASCII."""
LOCK_WAIT_SECONDS = 600
LOCK_TRIES = 5
LOCKED_OUT = {"55P03", "40P01"}
GAVE_UP = (
    f"Could not acquire locks for the next revision in {LOCK_TRIES} attempts. It was rolled back; "
    "run the command again to continue."
)
UNREADABLE = (
    "This login may not read orchestration.alembic_version: use one that is a member of "
    "symphony_owner, or read orchestration.schema_revision, as every runtime role may"
)


def server_url(config: Config, folder: Path) -> str:
    """Return the config's URL, otherwise DATABASE_URL, otherwise that of the development server.

    The development server is the one that runs in the folder. Raises CommandError if there is none.
    """
    if url := config.attributes.get("url") or os.environ.get("DATABASE_URL"):
        return str(url)
    if url := embedded.development_url(folder):
        shown = make_url(url).render_as_string(hide_password=True)
        config.print_stdout("Using the development server: %s", shown)
        return url
    raise CommandError(
        "No database: set DATABASE_URL (postgresql+psycopg://...), or start the development server "
        "with `make db`"
    )


def has_destination() -> bool:
    """Return whether the command is upgrade, downgrade or stamp. The others only read."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


@contextmanager
def connected(named: str) -> Generator[Connection]:
    """Yield a connection to a supported server, and raise every database error as CommandError."""
    with _connect(named) as connection:
        try:
            yield connection
        except DBAPIError as error:
            # Only the server's message: not the statement, which can be long, nor its position.
            diagnosis = getattr(error.orig, "diag", None)
            message = diagnosis.message_primary if diagnosis is not None else None
            if _was_locked_out(error):
                message = GAVE_UP
            elif not has_destination() and _sqlstate(error) == "42501":
                message = UNREADABLE
            raise CommandError(message or str(error.orig)) from error


def look(connection: Connection, migrate: Callable[[Connection], None]) -> None:
    """Run a command that only reads, without waiting for the upgrade lock."""
    connection.execute(text("SET default_transaction_read_only = on"))
    connection.commit()
    migrate(connection)


def change(
    connection: Connection,
    preparation: Sequence[TextClause],
    migrate: Callable[[Connection], None],
) -> None:
    """Migrate under the upgrade lock, and try again if a revision cannot acquire its locks.

    Each revision commits. The next attempt therefore starts at the revision that failed.
    """
    connection.execution_options(isolation_level="AUTOCOMMIT")
    _take_lock(connection)
    for statement in preparation:
        connection.execute(statement)
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")

    def attempt() -> None:
        connection.rollback()
        migrate(connection)
        connection.commit()

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_was_locked_out),
        stop=tenacity.stop_after_attempt(LOCK_TRIES),
        # Sessions that waited behind the last attempt need time to finish before the next one.
        wait=tenacity.wait_random(0.5, 1.5),
        before_sleep=_log_the_next_attempt,
        reraise=True,
    )
    tries(attempt)


def _connect(named: str) -> Connection:
    try:
        url = normalize_url(named)
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


def _take_lock(connection: Connection) -> None:
    """Take the advisory lock by polling.

    A session that waits inside pg_advisory_lock has a snapshot. CREATE INDEX CONCURRENTLY in the
    session that holds the lock waits for old snapshots, so both would wait for each other.
    """
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": UPGRADE_LOCK}):
        if time.monotonic() > deadline:
            raise CommandError("Another upgrade of this database has not finished in 10 minutes")
        time.sleep(0.1)


def _sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _was_locked_out(error: BaseException) -> bool:
    return _sqlstate(error) in LOCKED_OUT


def _log_the_next_attempt(state: tenacity.RetryCallState) -> None:
    logging.getLogger("alembic.env").info(
        "Could not acquire the locks of the revision. It was rolled back; attempt %s of %s follows",
        state.attempt_number + 1,
        LOCK_TRIES,
    )
