"""The base of every repository: the caller's Session, and the translation of errors."""

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
    """A repository works in the caller's transaction on the caller's Session and never commits.

    An argument of the wrong Python type raises TypeError, and one with the wrong content raises
    `pydantic.ValidationError`, before anything reaches the database. Both name the argument and do
    not show its value. A Session with a driver other than psycopg 3 raises UnsupportedDriver.

    Run a call that may be refused in `session.begin_nested()`. If a refusal is caught without a
    savepoint, the transaction has failed, and its commit raises FailedTransaction (25P02).
    """

    def __init__(self, session: Session) -> None:
        self._session = instance("session", Session, session)
        self._driver_is_known = session.bind is not None
        if session.bind is not None:
            require_psycopg(session.bind.dialect)

    def _rows(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of one statement, in one round trip. Database errors are translated."""
        with self._guard():
            result = self._session.execute(statement, parameters)
            # A dict of a RowMapping would cost more than everything else that is done with the row.
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
            # The Session had no bind when the repository was constructed.
            require_psycopg(self._session.get_bind().dialect)
            self._driver_is_known = True
        # Write the caller's pending objects first, outside of the translation: an error of the
        # caller's own tables is not ours.
        if self._session.autoflush:
            self._session.flush()
        autocommit = False
        try:
            with self._session.no_autoflush:
                # In autocommit every statement commits itself.
                driver = self._session.connection().connection.dbapi_connection
                autocommit = bool(getattr(driver, "autocommit", False))
                with self._remembered():
                    yield
        except UnclassifiedDatabaseError as error:
            # Our engine has already translated it, but not as an error of a repository call.
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
        # A refusal that is caught without a savepoint leaves a failed transaction. A host's own
        # engine would turn its COMMIT into a ROLLBACK without an error.
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
    # A rollback of the transaction or the savepoint also undoes the refusal.
    if within is not None and within.is_active:
        refuse_failed(session.connection(), refusal)


def as_text(value: str) -> ColumnElement[str]:
    """Cast a string before it is compared with a text column. The driver binds a varchar, for which
    PostgreSQL would use an operator of text and varchar that anybody can add to the search_path."""
    return cast(value, Text)


def one(row: dict[str, Any] | None) -> dict[str, Any]:
    """Return the only row of a function that always returns one."""
    assert row is not None
    return row
