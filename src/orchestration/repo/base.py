"""What every repository stands on: the caller's Session, and the guard that types errors."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Executable, Text, cast, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from orchestration.connect_failure import refusal_state
from orchestration.errors import OrchestrationError, UnclassifiedDatabaseError
from orchestration.repo.arguments import instance
from orchestration.translate import (
    REFUSAL,
    SCHEMA_CODES,
    fails_transaction,
    refuse_failed,
    require_psycopg,
    translate_in_call,
)


class Repository:
    """Works in the caller's transaction on the caller's Session, and never commits.

    A malformed argument never reaches the database. An argument of a wrong Python type raises
    TypeError, one of wrong content `pydantic.ValidationError`; both name the argument and do not
    show its value. A Session of another driver than psycopg 3 raises UnsupportedDriver.

    A refusal that is expected belongs into `session.begin_nested()`: caught without a savepoint it
    has failed the transaction, and the commit raises FailedTransaction (25P02).
    """

    def __init__(self, session: Session) -> None:
        self._session = instance("session", Session, session)
        self._driver_is_known = session.bind is not None
        if session.bind is not None:
            require_psycopg(session.bind.dialect)

    def _rows(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of one statement, one round trip; every database error comes out typed."""
        with self._guard():
            result = self._session.execute(statement, parameters)
            # A dict made of a RowMapping would cost more than all else that is done to the row.
            names = tuple(result.keys())
            return [dict(zip(names, row, strict=True)) for row in result]

    def _row(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        rows = self._rows(statement, parameters)
        return rows[0] if rows else None

    @contextmanager
    def _guard(self) -> Generator[None]:
        if not self._driver_is_known:
            # The Session had no bind when the repository was made.
            require_psycopg(self._session.get_bind().dialect)
            self._driver_is_known = True
        # The caller's pending objects are written first, outside the guard: what their tables
        # refuse is the caller's own error.
        if self._session.autoflush:
            self._session.flush()
        autocommit = False
        try:
            with self._session.no_autoflush:
                # In autocommit every statement carries its own COMMIT.
                driver = self._session.connection().connection.dbapi_connection
                autocommit = bool(getattr(driver, "autocommit", False))
                with self._remembered():
                    yield
        except UnclassifiedDatabaseError as error:
            # Our engine has typed it already, unaware that a call of ours was running.
            if error.sqlstate not in SCHEMA_CODES or error.__cause__ is None:
                raise
            raise translate_in_call(error.__cause__) from error.__cause__
        except DBAPIError as error:
            if error.orig is None:
                raise
            raise translate_in_call(
                error.orig,
                committing=autocommit,
                disconnected=error.connection_invalidated,
                refusal=refusal_state(error.orig, self._session.get_bind().engine),
            ) from error.orig

    @contextmanager
    def _remembered(self) -> Generator[None]:
        # Caught without a savepoint, a refusal leaves a transaction that no COMMIT can save; an
        # engine of the host's own would commit it in silence.
        try:
            yield
        except (DBAPIError, OrchestrationError) as error:
            session = self._session
            cause = error.orig if isinstance(error, DBAPIError) else error.__cause__
            if cause is not None and fails_transaction(cause):
                within = session.get_nested_transaction() or session.get_transaction()
                session.info[REFUSAL] = (within, cause)
                if not event.contains(session, "before_commit", _refuse_failed):
                    event.listen(session, "before_commit", _refuse_failed)
            raise


def _refuse_failed(session: Session) -> None:
    within, refusal = session.info.pop(REFUSAL, (None, None))
    # Where a rollback has ended the transaction or the savepoint, the refusal is undone with it.
    if within is not None and within.is_active:
        refuse_failed(session.connection(), refusal)


def as_text(value: str) -> ColumnElement[str]:
    """A string to compare with a text column. As the varchar that the driver binds, it would take
    up an operator of text and varchar that anybody has put into the search_path."""
    return cast(value, Text)


def one(row: dict[str, Any] | None) -> dict[str, Any]:
    """The row that a function of the database always returns."""
    assert row is not None
    return row
