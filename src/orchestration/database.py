"""Engines with our defaults, and the listener that translates database errors to typed ones."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import psycopg
from psycopg import generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from sqlalchemy import URL, Connection, Engine, ExceptionContext, event, make_url
from sqlalchemy import create_engine as _create_engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from orchestration.connect_failure import refusal_state
from orchestration.errors import (
    FailedTransaction,
    OrchestrationError,
    ReadOnlyServer,
    SchemaNotReady,
)
from orchestration.schema import REVISION
from orchestration.translate import (
    REFUSAL,
    SCHEMA_CODES,
    Confirmation,
    fails_transaction,
    is_ours,
    refuse_failed,
    require_alive,
    require_psycopg,
    translate,
)

SETTINGS: Final[Mapping[str, str]] = {
    # A transaction that holds a gate has a shorter bound, which the database sets.
    "idle_in_transaction_session_timeout": "60s",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "synchronous_commit": "on",
    # A cancelled wait for a synchronous standby is only visible as a warning.
    "client_min_messages": "notice",
    # A setting of the login would change the output format of times and intervals.
    "datestyle": "ISO",
    "intervalstyle": "postgres",
}
STARTUP_OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
# The first statement of a transaction: PostgreSQL ends these settings with the transaction, so a
# pooler's next client on the same server connection does not get them.
_TRANSACTION_SETTINGS: Final = "".join(
    f"; SET LOCAL {name} = '{value}'" for name, value in SETTINGS.items()
).encode()

CONNECT_TIMEOUT_SECONDS: Final = 10
# If the network drops every packet, waiting for a reply ends within 25 s: a probe is sent after 5 s
# of silence, and the connection is closed if nothing is acknowledged for 20 s.
NETWORK_BOUNDS: Final[Mapping[str, int]] = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}

_COMMITTING: Final = "orchestration.committing"
_CONFIRMATION: Final = "orchestration.confirmation"


def normalize_url(url: str | URL) -> URL:
    """Read `postgresql://` and `postgres://` as `postgresql+psycopg://`.

    Raises ArgumentError for any other URL. The message does not show the password.
    """
    form = "postgresql+psycopg://user:password@host:port/database"
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # the port that is no number
        raise ArgumentError(f"A database URL has the form {form}, and this one has not") from None
    if made.drivername in ("postgresql", "postgres"):
        return made.set(drivername="postgresql+psycopg")
    if made.drivername != "postgresql+psycopg":
        raise ArgumentError(f"A database URL has the form {form}, not {made.drivername}://")
    return made


def create_engine(url: str | URL, *, pooler: bool = False, **kw: Any) -> Engine:
    """SQLAlchemy's `create_engine` with timeouts; it translates every database error.

    On its first connection the engine reads `orchestration.schema_revision`. It raises
    SchemaNotReady if the schema is missing or older than this code.

    The defaults are `SETTINGS`, sent as startup options, and `NETWORK_BOUNDS`, which end a silent
    connection within 30 s. The URL and `connect_args` override them.

    `pooler`: pass True for a pooler in transaction mode. The engine then sends no startup options
    and uses no prepared statements. Each BEGIN sets `SETTINGS` by SET LOCAL in the same round trip,
    but not in AUTOCOMMIT and not for two-phase transactions.
    """
    at = normalize_url(url)
    connect_args: dict[str, Any] = {**NETWORK_BOUNDS, "client_encoding": "utf8"}
    if pooler:
        connect_args["prepare_threshold"] = None
    else:
        connect_args["options"] = STARTUP_OPTIONS
    # connect_args override the URL, so leave out the names that the URL already has.
    connect_args = {name: value for name, value in connect_args.items() if name not in at.query}
    connect_args |= kw.pop("connect_args", {})
    # Parameters contain accounts, payloads and hashes: `echo` and errors must not show them.
    engine = _create_engine(at, connect_args=connect_args, **({"hide_parameters": True} | kw))
    if pooler:
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.listen(engine, name, _begin_with_settings)
    event.listen(engine, "first_connect", _check_revision)
    _listen(engine, everything=True)
    _confirm(engine)
    return engine


def install_error_translation(engine: Engine) -> None:
    """Translate our errors on a host's own engine: errors in the schema `orchestration`, and
    refusals by our functions and triggers. All other errors pass unchanged.

    Raises UnsupportedDriver if the engine does not use psycopg 3, and TypeError if `engine` is not
    an Engine. For an AsyncEngine pass its `sync_engine`.
    """
    if not isinstance(cast("object", engine), Engine):
        raise TypeError(f"engine: expected an Engine, got {type(engine).__name__}")
    require_psycopg(engine.dialect)
    _listen(engine, everything=False)


def _confirm(engine: Engine) -> None:
    """Raise CommitOutcomeUnknown after a commit whose wait for a standby was cancelled."""

    def on_connect(_driver: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_CONFIRMATION] = Confirmation(record.driver_connection)

    def check(info: Mapping[Any, Any]) -> None:
        # While SQLAlchemy looks at a new server the connection is not yet watched.
        confirmation: Confirmation | None = info.get(_CONFIRMATION)
        if confirmation is not None:
            confirmation.check()

    def on_executed(connection: Connection, *_statement: Any) -> None:
        # In autocommit a statement is its own COMMIT.
        check(connection.info)

    # SQLAlchemy has events before a COMMIT and none after it.
    dialect = engine.dialect
    do_commit, do_prepare = dialect.do_commit, dialect.do_prepare_twophase
    do_commit_prepared = dialect.do_commit_twophase

    def commit(dbapi_connection: PoolProxiedConnection) -> None:
        do_commit(dbapi_connection)
        check(dbapi_connection.info)

    def prepare(connection: Connection, xid: Any) -> None:
        do_prepare(connection, xid)
        check(connection.info)

    def commit_prepared(connection: Connection, xid: Any, *how: Any, **named: Any) -> None:
        do_commit_prepared(connection, xid, *how, **named)
        check(connection.info)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "after_cursor_execute", on_executed)
    for name, checked in (
        ("do_commit", commit),
        ("do_prepare_twophase", prepare),
        ("do_commit_twophase", commit_prepared),
    ):
        setattr(dialect, name, checked)


def _listen(engine: Engine, *, everything: bool) -> None:
    def on_error(context: ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, OrchestrationError) or not isinstance(error, psycopg.Error):
            return
        ours = everything or is_ours(error)
        _remember(context.connection, error, ours=ours)
        if not ours:
            return
        typed = translate(
            error,
            committing=_commit_in_flight(context.connection),
            disconnected=context.is_disconnect,
            refusal=refusal_state(error, context.engine),
        )
        if isinstance(typed, ReadOnlyServer):
            # A standby, or a primary that was demoted: the pool's other connections lead there too.
            context.is_disconnect = True
        raise typed from error

    def refuse(connection: Connection) -> None:
        refusal = connection.info.get(REFUSAL)
        if everything or refusal is not None:
            refuse_failed(connection, refusal)

    def on_commit(connection: Connection) -> None:
        with _rolled_back_by(connection, lambda: connection.connection.rollback()):
            refuse(connection)
        if everything:
            require_alive(connection)
        connection.info[_COMMITTING] = True

    def on_prepare(connection: Connection, _xid: Any) -> None:
        refuse(connection)

    def on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
        def rollback() -> None:
            connection.dialect.do_rollback_twophase(connection, xid, is_prepared=is_prepared)

        with _rolled_back_by(connection, rollback):
            refuse(connection)
        connection.info[_COMMITTING] = True

    event.listen(engine, "handle_error", on_error)
    for name in ("begin", "begin_twophase", "rollback", "rollback_twophase"):
        event.listen(engine, name, _begun_or_over)
    event.listen(engine, "commit", on_commit)
    event.listen(engine, "prepare_twophase", on_prepare)
    event.listen(engine, "commit_twophase", on_commit_twophase)


def _remember(connection: Connection | None, error: psycopg.Error, *, ours: bool) -> None:
    if (
        connection is None
        or connection.closed
        or connection.invalidated
        or not fails_transaction(error)
    ):
        return
    info = _info(connection)
    # A savepoint has undone any earlier refusal, otherwise this statement could not have run.
    info.pop(REFUSAL, None)
    if ours:
        info[REFUSAL] = error


@contextmanager
def _rolled_back_by(connection: Connection, rollback: Callable[[], None]) -> Generator[None]:
    # After a failed COMMIT SQLAlchemy considers the transaction ended and sends no ROLLBACK.
    try:
        yield
    except FailedTransaction:
        try:
            rollback()
        except psycopg.Error:
            connection.invalidate()
        raise


def _begun_or_over(connection: Connection, *_twophase: Any) -> None:
    # An invalidated connection has lost its info, and would reconnect if it were read.
    if not connection.invalidated:
        connection.info.pop(_COMMITTING, None)
        connection.info.pop(REFUSAL, None)


def _info(connection: Connection) -> dict[Any, Any]:
    try:
        return connection.info
    except NotImplementedError:
        # While SQLAlchemy inspects a new server, the connection does not yet belong to the pool.
        return {}


def _commit_in_flight(connection: Connection | None) -> bool:
    if connection is None or connection.closed or connection.invalidated:
        return False
    if _info(connection).get(_COMMITTING):
        return True
    # In autocommit every statement commits itself.
    driver = connection.connection.dbapi_connection
    return bool(getattr(driver, "autocommit", False))


def _begin_with_settings(cursor: psycopg.Cursor[Any], *_statement: Any) -> None:
    # psycopg sends BEGIN in a separate round trip before the first statement, unless a transaction
    # is already open. So this adds statements, but no round trip.
    driver = cursor.connection
    if driver.autocommit or driver.info.transaction_status is not TransactionStatus.IDLE:
        return
    words = ["BEGIN"]
    if driver.isolation_level is not None:
        words.append(f"ISOLATION LEVEL {driver.isolation_level.name.replace('_', ' ')}")
    if driver.read_only is not None:
        words.append("READ ONLY" if driver.read_only else "READ WRITE")
    if driver.deferrable is not None:
        words.append("DEFERRABLE" if driver.deferrable else "NOT DEFERRABLE")
    driver.pgconn.send_query(" ".join(words).encode() + _TRANSACTION_SETTINGS)
    for result in driver.wait(generators.execute(driver.pgconn)):
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)


def _check_revision(driver: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    cursor = driver.cursor()
    try:
        cursor.execute("SELECT revision FROM orchestration.schema_revision")
        row = cursor.fetchone()
    except psycopg.Error as error:
        if error.sqlstate in SCHEMA_CODES:
            raise SchemaNotReady(
                "the schema `orchestration` is missing; run `alembic upgrade head`",
                sqlstate=error.sqlstate,
                hint="alembic upgrade head",
            ) from error
        raise translate(error) from error
    finally:
        cursor.close()
        driver.rollback()
    found = row[0] if row else None
    if found is None or found < REVISION:
        raise SchemaNotReady(
            f"the database is at revision {found}, this code needs {REVISION}; run "
            "`alembic upgrade head`",
            hint="alembic upgrade head",
        )
