"""run_in_transaction: a unit of work, run again as long as that is safe."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from orchestration.errors import (
    DeadlockDetected,
    LockNotAvailable,
    OrchestrationError,
    Retry,
    SerializationFailure,
)
from orchestration.translate import REFUSAL, is_ours, refuse_failed, translate

T = TypeVar("T")

ATTEMPTS = 8
LONGEST_WAIT_SECONDS = 2.0


def run_in_transaction(session_factory: Callable[[], Session], work: Callable[[Session], T]) -> T:
    """Run `work` in a new Session and commit; after an error whose `retry` is SAFE, again.

    Each try has a Session of its own, so everything is re-read. At most 8 tries, with jittered
    exponential waits of up to 2 s; then the last error is raised. An unknown outcome
    (CommitOutcomeUnknown) is never retried: the caller replays under the same idempotency key.

    Raises FailedTransaction (25P02) where `work` caught a refusal outside of a savepoint.
    """
    for attempt in Retrying(
        retry=retry_if_exception(_is_safe),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.02, max=LONGEST_WAIT_SECONDS),
        reraise=True,
    ):
        with attempt:
            return _once(session_factory, work)
    raise AssertionError("Retrying either returns or raises")


def _once(session_factory: Callable[[], Session], work: Callable[[Session], T]) -> T:
    with session_factory() as session:
        connections: set[Connection] = set()

        def begun(_session: Session, _within: SessionTransaction, connection: Connection) -> None:
            connections.add(connection)

        event.listen(session, "after_begin", begun)
        result = work(session)
        session.flush()
        # Whoever's refusal it was that `work` caught: its result would not be stored.
        _within, refusal = session.info.get(REFUSAL, (None, None))
        for connection in connections:
            if not connection.closed and not connection.invalidated:
                refuse_failed(connection, connection.info.get(REFUSAL, refusal))
        try:
            session.commit()
        except DBAPIError as error:
            # A host's engine without our listener: what became of COMMIT is told all the same.
            if error.orig is None:
                raise
            typed = translate(
                error.orig, committing=True, disconnected=error.connection_invalidated
            )
            if is_ours(error.orig) or typed.retry is not Retry.NEVER:
                raise typed from error.orig
            raise
        return result


def _is_safe(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.orig is not None:
        # The host's own tables, on an engine of its own: these three have stored nothing.
        error = translate(error.orig)
        return isinstance(error, SerializationFailure | DeadlockDetected | LockNotAvailable)
    return isinstance(error, OrchestrationError) and error.retry is Retry.SAFE
