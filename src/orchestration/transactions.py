"""run_in_transaction runs a unit of work and repeats it after errors that are safe to retry."""

import random
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from orchestration.connect_failure import refusal_state
from orchestration.errors import (
    CommitOutcomeUnknown,
    ConnectionLost,
    DeadlockDetected,
    DiskFull,
    LockNotAvailable,
    OrchestrationError,
    OutOfMemory,
    ReadOnlyServer,
    Retry,
    SerializationFailure,
)
from orchestration.translate import (
    REFUSAL,
    Confirmation,
    is_ours,
    refuse_failed,
    require_alive,
    translate,
)

T = TypeVar("T")

ATTEMPTS = 8
LONGEST_WAIT_SECONDS = 2.0
PAUSE_SECONDS = 5.0
"""The longest wait after DiskFull and OutOfMemory. The shortest is half of it."""

HOSTS_OWN: Final = (
    *(SerializationFailure, DeadlockDetected, LockNotAvailable),
    *(ConnectionLost, ReadOnlyServer, DiskFull, OutOfMemory),
)
"""The errors of a host's own statement that are retried: none of them has stored anything."""

# Tags of commands that write. NOTIFY takes its xid only at COMMIT.
WRITING_TAGS: Final = ("INSERT", "UPDATE", "DELETE", "MERGE", "NOTIFY")
# Functions that have written if they returned a row. If a function is missing here, the result is
# still right: the unit then asks the server before its COMMIT, in one more round trip.
WRITING_FUNCTIONS: Final = frozenset(
    {
        "append_attestations",
        "authorize_instruction",
        "claim_outbox_batch",
        "complete_instruction",
        "complete_outbox_attempt",
        "enqueue_payment_outbox",
        "fail_instruction",
        "receive_instruction",
        "record_attestation_event",
        "renew_outbox_lease",
        "start_execution",
    }
)
# The attribute of SQLAlchemy's error that contains the typed one while run_in_transaction decides.
_TYPED: Final = "_orchestration_typed"
# As NOTIFY does, it takes an xid only at COMMIT.
_NOTIFIED: Final = re.compile(r"\bpg_notify\s*\(", re.IGNORECASE)
_CALLED: Final = re.compile(r"\borchestration\.(\w+)\s*\(")


def run_in_transaction(
    session_factory: Callable[[], Session],
    work: Callable[[Session], T],
    *,
    deadline: timedelta | None = None,
    replayable: bool = False,
) -> T:
    """Run `work` in a new Session and commit. Repeat it after an error whose `retry` is SAFE.

    Each try gets a new Session, so `work` reads everything again. Between tries the function waits
    up to 2 s, exponentially and with jitter; after DiskFull (53100) and OutOfMemory (53200) it
    waits 2.5 to 5 s.

    `deadline`: without it there are at most 8 tries. With it the number of tries is unlimited, and
    the last try starts when `deadline` has passed since the call. A running try is not interrupted.
    A deadline of one minute is enough for a failover. After the last try its error is raised.

    `replayable`: pass True if `work` can be repeated even after its COMMIT succeeded, because its
    acts have idempotency keys. CommitOutcomeUnknown is then retried too. Otherwise it is raised at
    once, and the caller must repeat the unit with the same key. A unit that only reads never raises
    it: if such a unit loses its connection during COMMIT, the error is ConnectionLost.

    On a host's own engine, a lost connection, a full disk and similar errors (`HOSTS_OWN`) are also
    retried if the host's own statements raise them. After the last try, SQLAlchemy's error is
    raised.

    Raises FailedTransaction (25P02) if `work` caught a refusal outside of a savepoint.
    """
    seconds = None
    if deadline is not None:
        if not isinstance(cast("object", deadline), timedelta):
            raise TypeError(f"deadline: expected a timedelta, got {type(deadline).__name__}")
        seconds = deadline.total_seconds()
    last: OrchestrationError | None = None

    def may_run_again(error: BaseException) -> bool:
        nonlocal last
        last = error if isinstance(error, OrchestrationError) else getattr(error, _TYPED, None)
        if isinstance(error, DBAPIError):
            return isinstance(last, HOSTS_OWN)
        if isinstance(last, CommitOutcomeUnknown):
            return replayable
        return last is not None and last.retry is Retry.SAFE

    def wait(state: RetryCallState) -> float:
        if isinstance(last, DiskFull | OutOfMemory):
            wanted = PAUSE_SECONDS * random.uniform(0.5, 1)
        else:
            wanted = wait_random_exponential(multiplier=0.02, max=LONGEST_WAIT_SECONDS)(state)
        passed = state.seconds_since_start or 0.0
        return wanted if seconds is None else max(0.0, min(wanted, seconds - passed))

    for attempt in Retrying(
        retry=retry_if_exception(may_run_again),
        stop=stop_after_attempt(ATTEMPTS) if seconds is None else stop_after_delay(seconds),
        wait=wait,
        reraise=True,
    ):
        with attempt:
            return _once(session_factory, work)
    raise AssertionError("Retrying either returns or raises")


def _once(session_factory: Callable[[], Session], work: Callable[[Session], T]) -> T:
    with session_factory() as session, _watched(session) as connections:
        try:
            result = work(session)
            session.flush()
        except (DBAPIError, OrchestrationError) as error:
            committing = any(one.autocommit for one in connections)
            typed = _typed(session, error, committing=committing)
            if isinstance(typed, ReadOnlyServer):
                # Otherwise a host's engine would use the same connection for the next try.
                _discard(connections)
            if typed is not error and isinstance(typed, CommitOutcomeUnknown):
                raise typed from typed.__cause__
            raise
        # Fail even if `work` caught the refusal: its transaction is aborted, so the result would
        # not be stored.
        _within, refusal = session.info.get(REFUSAL, (None, None))
        for one in connections:
            if one.is_usable():
                refuse_failed(one.connection, one.connection.info.get(REFUSAL, refusal))
                if not one.autocommit:
                    require_alive(one.connection)
        wrote = any(one.has_written() for one in connections)
        try:
            session.commit()
            for one in connections:
                one.confirmation.check()
        except (DBAPIError, CommitOutcomeUnknown) as error:
            # A host's engine without our listener does not know the outcome of the COMMIT.
            typed = _typed(session, error, committing=True)
            if isinstance(typed, CommitOutcomeUnknown) and not wrote:
                raise _only_read(typed) from typed.__cause__
            if typed.retry is Retry.NEVER and not is_ours(typed.__cause__):
                raise
            if typed is error:
                raise
            raise typed from typed.__cause__
        return result


@dataclass
class _Watched:
    """A connection that a unit uses, and whether its transaction has written."""

    connection: Connection
    autocommit: bool
    read_only: bool
    confirmation: Confirmation
    wrote: bool = False

    def is_usable(self) -> bool:
        return not self.connection.closed and not self.connection.invalidated

    def note(self, _connection: Connection, cursor: Any, statement: str, *_rest: Any) -> None:
        if self.wrote:
            return
        if (getattr(cursor, "statusmessage", None) or "").startswith(WRITING_TAGS):
            self.wrote = True
        elif cursor.rowcount > 0:
            called = _CALLED.search(statement)
            self.wrote = (
                called is not None and called[1] in WRITING_FUNCTIONS
            ) or _NOTIFIED.search(statement) is not None

    def has_written(self) -> bool:
        """Whether the transaction may have written, so that a lost reply to its COMMIT leaves the
        outcome unknown. A transaction without an xid has written nothing."""
        if self.wrote or self.autocommit or not self.is_usable():
            return True
        if self.read_only:
            return False
        found = self.connection.exec_driver_sql(
            "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
        )
        return bool(found.scalar_one())


@contextmanager
def _watched(session: Session) -> Generator[list[_Watched]]:
    connections: list[_Watched] = []

    def begun(_session: Session, _within: SessionTransaction, connection: Connection) -> None:
        if any(one.connection is connection for one in connections):
            return
        driver = connection.connection.dbapi_connection
        one = _Watched(
            connection,
            autocommit=bool(getattr(driver, "autocommit", False)),
            read_only=getattr(driver, "read_only", None) is True,
            confirmation=Confirmation(connection.connection.driver_connection),
        )
        connections.append(one)
        event.listen(connection, "after_cursor_execute", one.note)

    event.listen(session, "after_begin", begun)
    try:
        yield connections
    finally:
        event.remove(session, "after_begin", begun)
        for one in connections:
            event.remove(one.connection, "after_cursor_execute", one.note)
            one.confirmation.close()


def _discard(connections: list[_Watched]) -> None:
    for one in connections:
        if one.is_usable():
            one.connection.invalidate()


def _only_read(error: CommitOutcomeUnknown) -> ConnectionLost:
    return ConnectionLost(
        f"{error} (the transaction has only read)", sqlstate=error.sqlstate, hint=error.hint
    )


def _typed(
    session: Session, error: DBAPIError | OrchestrationError, *, committing: bool
) -> OrchestrationError:
    """Translate an error of a host's engine as our engine would. Store the typed error in the
    host's error, for the next decision."""
    if isinstance(error, OrchestrationError):
        return error
    cause = error.orig or error
    try:
        engine = session.get_bind().engine
    except UnboundExecutionError:
        engine = None
    typed = translate(
        cause,
        committing=committing,
        disconnected=error.connection_invalidated,
        refusal=refusal_state(cause, engine),
    )
    typed.__cause__ = cause
    setattr(error, _TYPED, typed)
    return typed
