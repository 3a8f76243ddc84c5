"""Translates the driver's errors to typed ones; no other module reads psycopg's errors."""

import json
import re
import select
from collections.abc import Callable
from functools import partial
from typing import Final, cast

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Dialect

from orchestration.errors import (
    BY_CONSTRAINT,
    BY_SQLSTATE,
    CommitOutcomeUnknown,
    ConnectionLost,
    FailedTransaction,
    ForeignKeyViolation,
    OrchestrationError,
    PoolerModeRequired,
    SchemaNotReady,
    UnclassifiedDatabaseError,
    UniqueViolation,
    UnsupportedDriver,
)
from orchestration.invariants import BY_ID, BY_NATIVE_CONSTRAINT

SCHEMA: Final = "orchestration"

# invalid_schema_name, undefined_table, undefined_function, undefined_column: inside a repository
# call they mean that the schema is missing or older than the code.
SCHEMA_CODES: Final = frozenset({"3F000", "42P01", "42883", "42703"})

# not_null_violation, check_violation: the server's DETAIL shows the failing row with its accounts,
# payloads and hashes.
ROW_CODES: Final = frozenset({"23502", "23514"})

# The key in `info`. A connection's `info` keeps the error that has failed its transaction. A
# Session's keeps the SessionTransaction and the error that has failed it.
REFUSAL: Final = "orchestration.refusal"

# The start of every MESSAGE of raise_invariant. PL/Proxy drops the other fields and puts its own
# words before the message: `public.name(2): [database] REMOTE ERROR: INV-...`.
_NAMED: Final = re.compile(r"(?:\S+\(\d+\): \[[^]]*\] REMOTE \w+: )?(INV-[A-Z]{3}-\d{3}): ")

# Citus appends the number of the shard to the names of a shard's constraints.
_SHARD: Final = re.compile(r"_\d+$")

DATA_EXCEPTION: Final = "22"
"""The class of SQLSTATEs whose messages repeat a value that was sent."""
SHOWN: Final = 200
"""How many characters of such a message an error shows."""

DRIVERS: Final = frozenset({"psycopg", "psycopg_async"})


def require_psycopg(dialect: Dialect) -> None:
    """Raise UnsupportedDriver for every driver other than psycopg 3."""
    if dialect.driver not in DRIVERS:
        raise UnsupportedDriver(
            f"expected an engine of postgresql+psycopg, got {dialect.name}+{dialect.driver}",
            hint="Create the engine with a URL of the form postgresql+psycopg://...",
        )


class Confirmation:
    """Watches the notices of one driver connection for a cancelled wait for a synchronous standby.

    After a cancelled wait the server reports a COMMIT that no standby has confirmed. It sends the
    warning before the reply to the statement that committed, so `check` after that statement sees
    it. A login whose client_min_messages is `error` does not receive the warning.
    """

    def __init__(self, driver: object) -> None:
        self._unconfirmed: CommitOutcomeUnknown | None = None
        self._stop: Callable[[], None] = lambda: None
        if isinstance(driver, psycopg.Connection | psycopg.AsyncConnection):
            driver.add_notice_handler(self._hear)
            self._stop = partial(driver.remove_notice_handler, self._hear)

    def check(self) -> None:
        """Raise CommitOutcomeUnknown if a wait was cancelled since the last check."""
        unconfirmed, self._unconfirmed = self._unconfirmed, None
        if unconfirmed is not None:
            raise unconfirmed

    def close(self) -> None:
        self._stop()

    def _hear(self, notice: Diagnostic) -> None:
        # Every plain warning has code 01000, for example that of a deferred trigger at COMMIT. The
        # name of the server's function is not localized, and RAISE cannot set it.
        if notice.sqlstate == "01000" and notice.source_function == "SyncRepWaitForLSN":
            # libpq clears the notice after this call.
            self._unconfirmed = CommitOutcomeUnknown(
                notice.message_primary,
                sqlstate=notice.sqlstate,
                detail=_detail(notice.message_detail),
                hint="Repeat the act with the same key after a standby is connected again.",
            )


def is_ours(error: BaseException | None) -> bool:
    """Whether a host's engine should translate this error: it names our schema, or it is a P-code
    with the id of an invariant. A host's own RAISE EXCEPTION is P0001 too, but has no such id."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.diag.schema_name == SCHEMA:
        return True
    return (error.sqlstate or "").startswith("P") and _raised(error) is not None


def translate(
    error: BaseException,
    *,
    committing: bool = False,
    disconnected: bool = False,
    refusal: str | None = None,
) -> OrchestrationError:
    """Return the typed error for a driver's error. The caller raises it `from` the driver's error.

    `committing`: a COMMIT was in flight, so if the connection was lost, its outcome is unknown.
    `disconnected`: SQLAlchemy found the connection dead, whatever the error itself reports.
    `refusal`: the SQLSTATE of a refused connect (`connect_failure.refusal_state`).
    """
    if not isinstance(error, psycopg.Error):
        return UnclassifiedDatabaseError(str(error))
    if _is_refused_by_pooler(error):
        return _pooler_mode_required(error)
    sqlstate, diag = error.sqlstate or refusal, error.diag
    detail = _detail(diag.message_detail)
    if sqlstate in ROW_CODES and detail is not None and "text" in detail:
        detail = None
        # A traceback prints the cause, whose text repeats DETAIL.
        error.args = (diag.message_primary,)
    message = diag.message_primary or str(error).strip()
    if sqlstate is not None and sqlstate.startswith(DATA_EXCEPTION) and len(message) > SHOWN:
        # The message repeats the value that is not valid for its type.
        message = message[:SHOWN]
        error.args = (message,)
    kind = _class(error, sqlstate, committing=committing, disconnected=disconnected)
    hint = diag.message_hint
    if hint is None and kind is CommitOutcomeUnknown:
        # The driver's message says only that the connection was lost.
        hint = "COMMIT was sent. Repeat the act under the same key: it returns what was recorded."
    return kind(
        message or None,
        sqlstate=sqlstate,
        invariant=_invariant(error),
        schema=diag.schema_name,
        table=diag.table_name,
        column=diag.column_name,
        constraint=diag.constraint_name,
        detail=detail,
        hint=hint,
    )


def _is_refused_by_pooler(error: psycopg.Error) -> bool:
    # PgBouncer rejects a client's `options`. The driver gives no SQLSTATE for a failed connect, so
    # only the text can be checked; PgBouncer does not translate it. The two codes come from a
    # server connection on which another client has prepared the statement, or this client has not.
    if error.sqlstate is None:
        return "unsupported startup parameter" in str(error)
    return error.sqlstate in PoolerModeRequired.sqlstates and not is_ours(error)


def _pooler_mode_required(error: psycopg.Error) -> PoolerModeRequired:
    message = error.diag.message_primary or str(error).strip()
    return PoolerModeRequired(
        f"{message}: the connection goes through a pooler in transaction mode; create the engine "
        "with pooler=True",
        sqlstate=error.sqlstate,
        detail=_detail(error.diag.message_detail),
        hint="Call orchestration.database.create_engine(url, pooler=True). An engine that you make "
        "yourself needs connect_args={'prepare_threshold': None} and no startup options.",
    )


def translate_in_call(
    error: BaseException,
    *,
    committing: bool = False,
    disconnected: bool = False,
    refusal: str | None = None,
) -> OrchestrationError:
    """Like `translate`, but for an error raised inside a repository call. If an object does not
    exist there, the schema is not ready."""
    if isinstance(error, psycopg.Error) and error.sqlstate in SCHEMA_CODES:
        return SchemaNotReady(
            f"{(error.diag.message_primary or str(error)).strip()}: the schema is missing or older "
            "than this code needs; run `alembic upgrade head`",
            sqlstate=error.sqlstate,
            hint="alembic upgrade head",
        )
    return translate(error, committing=committing, disconnected=disconnected, refusal=refusal)


def fails_transaction(error: BaseException) -> bool:
    """Whether this error has failed its transaction: the server raised it, and the transaction had
    not failed before."""
    return isinstance(error, psycopg.Error) and error.sqlstate not in (None, "25P02")


def refuse_failed(connection: Connection, refusal: BaseException | None) -> None:
    """Refuse to commit a transaction that `refusal` has already failed. The server would answer the
    COMMIT with a ROLLBACK and no error, so the caller would not notice that nothing was stored.

    Raises FailedTransaction (25P02).
    """
    driver = connection.connection.driver_connection
    if (
        isinstance(driver, psycopg.Connection | psycopg.AsyncConnection)
        and driver.info.transaction_status is TransactionStatus.INERROR
    ):
        raise FailedTransaction(
            "the transaction failed earlier and cannot be committed",
            sqlstate="25P02",
            hint="Roll back and begin again. Run what may be refused in begin_nested().",
        ) from refusal


def require_alive(connection: Connection) -> None:
    """Raise ConnectionLost if the server has already closed the connection, for example because the
    transaction was idle for too long. No COMMIT was sent, so the outcome is known.
    """
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection | psycopg.AsyncConnection):
        return
    waiting = select.poll()
    waiting.register(driver.fileno(), select.POLLIN)
    if not waiting.poll(0):
        return
    fatal: list[tuple[str | None, str | None]] = []
    cause: psycopg.Error | None = None

    def hear(notice: Diagnostic) -> None:
        # libpq reports an error that is not the reply to a statement as a notice.
        if notice.severity_nonlocalized in ("FATAL", "PANIC"):
            fatal.append((notice.sqlstate, notice.message_primary))

    driver.add_notice_handler(hear)
    try:
        driver.pgconn.consume_input()
    except psycopg.OperationalError as error:
        cause = error
    finally:
        driver.pgconn.is_busy()
        driver.remove_notice_handler(hear)
    if fatal or cause is not None:
        connection.invalidate()
        sqlstate, message = fatal[0] if fatal else (None, None)
        raise ConnectionLost(
            f"{message or cause} (before COMMIT was sent)",
            sqlstate=sqlstate,
            hint="Run the whole unit again.",
        ) from cause or psycopg.OperationalError(str(message))


def _class(
    error: psycopg.Error, sqlstate: str | None, *, committing: bool, disconnected: bool
) -> type[OrchestrationError]:
    known = BY_SQLSTATE.get(sqlstate) if sqlstate is not None else None
    if known is CommitOutcomeUnknown:
        return CommitOutcomeUnknown
    if known is ConnectionLost or _is_loss(error, sqlstate, disconnected=disconnected):
        # 25P03: the server ended an idle transaction, so it had not received the COMMIT.
        return CommitOutcomeUnknown if committing and sqlstate != "25P03" else ConnectionLost
    if known is UniqueViolation or known is ForeignKeyViolation:
        return BY_CONSTRAINT.get(_without_shard(error.diag.constraint_name or ""), known)
    return known or UnclassifiedDatabaseError


def _invariant(error: psycopg.Error) -> str | None:
    """The invariant that the error violates, by its own id or by a constraint of the catalogue."""
    constraint = error.diag.constraint_name or ""
    return _raised(error) or BY_NATIVE_CONSTRAINT.get(_without_shard(constraint))


def _raised(error: psycopg.Error) -> str | None:
    """The id that `raise_invariant` has sent. MESSAGE counts only if there is no CONSTRAINT, and
    only for an id of the catalogue together with a SQLSTATE of its entry."""
    constraint = error.diag.constraint_name
    if constraint is not None:
        return constraint if constraint.startswith("INV-") else None
    named = _NAMED.match(error.diag.message_primary or "")
    entry = BY_ID.get(named[1]) if named else None
    return entry.id if entry is not None and error.sqlstate in entry.sqlstates else None


def _without_shard(constraint: str) -> str:
    return _SHARD.sub("", constraint)


def _is_loss(error: psycopg.Error, sqlstate: str | None, *, disconnected: bool) -> bool:
    if sqlstate is not None:
        return sqlstate.startswith("08")
    # Without a SQLSTATE the server sent no error: the connection was refused or closed, or no reply
    # came. Errors that the client raises itself, for a value it cannot adapt, have other classes.
    return disconnected or isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def _detail(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    if text.startswith("{"):
        try:
            parsed: object = json.loads(text)
        except ValueError:
            pass
        else:
            if isinstance(parsed, dict):
                return cast("dict[str, object]", parsed)
    return {"text": text}
