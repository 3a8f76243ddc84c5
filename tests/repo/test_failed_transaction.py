"""An error that was caught without a savepoint: the failed transaction is never reported as
committed.

The server answers the COMMIT of a failed transaction with ROLLBACK, and without an error.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, TwoPhaseTransaction, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import database as engines
from orchestration import errors
from orchestration.records import NewOutboxItem, OutboxItemRecord
from orchestration.repo import OutboxRepository
from orchestration.transactions import run_in_transaction
from tests.support import POOLED, Connect, new_instruction_id

pytestmark = pytest.mark.instructed


def new(key: str = "k", **changed: Any) -> NewOutboxItem:
    values: dict[str, Any] = {
        "instruction_id": new_instruction_id(),
        "participant_id": "bank-a",
        "idempotency_key": key,
        "rail_type": "SEPA",
        "payload": {"amount": 100},
    }
    return NewOutboxItem(**(values | changed))


def count(owner: Connect) -> int:
    found = owner.execute("SELECT count(*) FROM orchestration.payment_outbox_items").fetchone()
    assert found is not None
    return int(found[0])


KINDS = ("ours", "a host's that translates", "a host's")


@pytest.fixture
def engine_of(database: scratch.Database) -> Iterator[Callable[[str], Engine]]:
    with ExitStack() as opened:

        def make(kind: str) -> Engine:
            url = database.as_role("executor")
            if kind == "ours":
                made = engines.create_engine(url, pooler=POOLED, pool_size=1, max_overflow=0)
            else:
                made = plain_engine(url, pool_size=1, max_overflow=0)
            if kind == "a host's that translates":
                engines.install_error_translation(made)
            opened.callback(made.dispose)
            return made

        yield make


def enqueue_and_swallow(session: Session) -> OutboxItemRecord:
    """Act like a careless service: catch the error of the second statement without a savepoint."""
    outbox = OutboxRepository(session)
    made = outbox.enqueue(new())
    other = new(instruction_id=made.instruction_id, payload={"amount": 200})
    with suppress(errors.IdempotencyConflict):
        outbox.enqueue(other)
    return made


def assert_failed(error: errors.FailedTransaction) -> None:
    assert type(error) is errors.FailedTransaction
    assert (error.sqlstate, error.retry) == ("25P02", errors.Retry.NEVER)
    assert "failed earlier" in str(error)
    assert "begin_nested()" in f"{error} {error.hint}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_swallowed_refusal_makes_the_commit_raise_and_the_session_goes_on(
    engine_of: Callable[[str], Engine], owner: Connect, kind: str
) -> None:
    with Session(engine_of(kind)) as session:
        enqueue_and_swallow(session)
        with pytest.raises(errors.FailedTransaction) as raised:
            session.commit()
        assert_failed(raised.value)
        session.rollback()
        OutboxRepository(session).enqueue(new())
        session.commit()
    assert count(owner) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_run_in_transaction_does_not_return_what_was_not_committed(
    engine_of: Callable[[str], Engine], owner: Connect, kind: str
) -> None:
    factory = sessionmaker(engine_of(kind))
    tries = []

    def work(session: Session) -> OutboxItemRecord:
        tries.append(session)
        return enqueue_and_swallow(session)

    with pytest.raises(errors.FailedTransaction) as raised:
        run_in_transaction(factory, work)
    assert_failed(raised.value)
    assert len(tries) == 1
    assert run_in_transaction(factory, lambda session: OutboxRepository(session).enqueue(new()))
    assert count(owner) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_run_in_transaction_hears_of_a_failure_of_the_hosts_own_statement(
    engine_of: Callable[[str], Engine], owner: Connect, kind: str
) -> None:
    def work(session: Session) -> OutboxItemRecord:
        made = OutboxRepository(session).enqueue(new())
        with suppress(DBAPIError, errors.OrchestrationError):
            session.execute(text("SELECT 1 / 0"))
        return made

    with pytest.raises(errors.FailedTransaction) as raised:
        run_in_transaction(sessionmaker(engine_of(kind)), work)
    assert_failed(raised.value)
    assert count(owner) == 0


def test_the_cause_is_the_refusal_that_failed_the_transaction(
    engine_of: Callable[[str], Engine],
) -> None:
    with Session(engine_of("ours")) as session:
        outbox = OutboxRepository(session)
        with suppress(errors.InsufficientPrivilege), session.begin_nested():
            session.execute(text("DELETE FROM orchestration.payment_outbox_items"))
        outbox.enqueue(new())
        with suppress(errors.UnclassifiedDatabaseError):
            session.execute(text("SELECT 1 / 0"))
        with suppress(errors.FailedTransaction):
            session.execute(text("SELECT 1"))
        with pytest.raises(errors.FailedTransaction) as raised:
            session.commit()
    assert isinstance(raised.value.__cause__, psycopg.Error)
    assert raised.value.__cause__.sqlstate == "22012"


def test_a_failure_that_the_engine_has_not_seen_is_reported_without_a_cause(
    engine_of: Callable[[str], Engine],
) -> None:
    with engine_of("ours").connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        driver = connection.connection.driver_connection
        assert driver is not None
        with suppress(psycopg.Error):
            driver.execute("SELECT 1 / 0")
        with pytest.raises(errors.FailedTransaction) as raised:
            connection.commit()
        assert raised.value.__cause__ is None


def test_a_core_connection_goes_on_after_its_rollback(engine_of: Callable[[str], Engine]) -> None:
    with engine_of("ours").connect() as connection:
        with suppress(errors.UnclassifiedDatabaseError):
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(errors.FailedTransaction):
            connection.commit()
        connection.rollback()
        assert connection.scalar(text("SELECT 1")) == 1
        connection.commit()


@pytest.mark.superuser
def test_a_connection_that_is_lost_meanwhile_is_replaced(
    engine_of: Callable[[str], Engine], superuser: Connect
) -> None:
    with engine_of("ours").connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with suppress(errors.UnclassifiedDatabaseError):
            connection.execute(text("SELECT 1 / 0"))
        assert superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone()
        with pytest.raises(errors.FailedTransaction):
            connection.commit()
        connection.rollback()
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_in_a_savepoint_undoes_nothing_else(
    engine_of: Callable[[str], Engine], owner: Connect, kind: str
) -> None:
    with Session(engine_of(kind)) as session:
        outbox = OutboxRepository(session)
        made = outbox.enqueue(new())
        other = new(instruction_id=made.instruction_id, payload={"amount": 200})
        with suppress(errors.IdempotencyConflict), session.begin_nested():
            outbox.enqueue(other)
        outbox.enqueue(new())
        session.commit()
    assert count(owner) == 2


def test_a_hosts_own_failure_is_its_own_affair_on_its_engine(
    engine_of: Callable[[str], Engine],
) -> None:
    with Session(engine_of("a host's that translates")) as session:
        with suppress(DBAPIError):
            session.execute(text("SELECT 1 / 0"))
        session.commit()
        assert session.scalar(text("SELECT 1")) == 1


def test_a_refusal_of_the_transaction_before_is_forgotten(
    engine_of: Callable[[str], Engine],
) -> None:
    with Session(engine_of("a host's that translates")) as session:
        enqueue_and_swallow(session)
        session.rollback()
        with suppress(DBAPIError):
            session.execute(text("SELECT 1 / 0"))
        session.commit()


@pytest.mark.parametrize("act", [TwoPhaseTransaction.prepare, TwoPhaseTransaction.commit])
def test_a_transaction_in_two_phases_is_refused_too(
    engine_of: Callable[[str], Engine], act: Callable[[TwoPhaseTransaction], None]
) -> None:
    with engine_of("ours").connect() as connection:
        transaction = connection.begin_twophase()
        with suppress(errors.UnclassifiedDatabaseError):
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(errors.FailedTransaction) as raised:
            act(transaction)
        assert_failed(raised.value)
        transaction.rollback()
        assert connection.scalar(text("SELECT 1")) == 1
