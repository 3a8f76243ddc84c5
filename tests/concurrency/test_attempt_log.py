"""Attempt logs under concurrency: an attempt opens once and closes once. A snapshot that is too old
to see the log gets 40001, never an error that is no longer true."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.concurrency.support import (
    PATIENCE_SECONDS,
    begin,
    errors_of,
    refused,
    take_snapshot,
    together,
)
from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    assert_invariant,
    await_blocked,
    backend,
    instruction_id,
)

pytestmark = pytest.mark.instructed

Login = Callable[[str], Connect]
Row = tuple[Any, ...]

LOGS = ("execution_attempts", "transaction_attempts")
P = instruction_id("p", 0)
WRITERS = 8

each_log = pytest.mark.parametrize("log", LOGS)
each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT * FROM orchestration.verify_attempt_logs()").fetchall() == []


def open_next(connection: Connect, log: str, worker_id: str = "w") -> Row:
    rail = "" if log == LOGS[0] else ", p_rail_type => 'SEPA'"
    row = connection.execute(
        f"SELECT attempt_no, worker_id FROM orchestration.open_{log[:-1]}("
        f"p_instruction_id => %s, p_worker_id => %s{rail})",
        (P, worker_id),
    ).fetchone()
    assert row is not None
    return row


def close(connection: Connect, log: str, attempt_no: int, outcome: str = "FAILED") -> Row:
    row = connection.execute(
        f"SELECT attempt_no, outcome, xact_id FROM orchestration.close_{log[:-1]}("
        "p_instruction_id => %s, p_attempt_no => %s, p_outcome => %s)",
        (P, attempt_no, outcome),
    ).fetchone()
    assert row is not None
    return row


def insert(connection: Connect, log: str, attempt_no: int, phase: str = "OPEN") -> None:
    """Insert a row by hand, as owner."""
    rail = "" if log == LOGS[0] else ", rail_type"
    connection.execute(
        f"INSERT INTO orchestration.{log} (instruction_id, attempt_no, phase, worker_id,"
        f" outcome{rail}) VALUES (%s, %s, %s, 'w', %s{', %s' if rail else ''})",
        (P, attempt_no, phase, "FAILED" if phase == "CLOSE" else None, *(["SEPA"] if rail else [])),
    )


def recorded(owner: Connect, log: str) -> list[Row]:
    return owner.execute(
        f"SELECT attempt_no, phase, outcome FROM orchestration.{log}"
        " WHERE instruction_id = %s ORDER BY attempt_no, phase DESC",
        (P,),
    ).fetchall()


def at_once(
    connections: Sequence[Connect], isolation: str, *acts: Callable[[Connect], Row]
) -> list[Row | psycopg.Error]:
    """Run each act in its own transaction. All snapshots are older than the effects of the acts."""

    def work_of(
        connection: Connect, act: Callable[[Connect], Row]
    ) -> Callable[[threading.Barrier], Row]:
        def work(barrier: threading.Barrier) -> Row:
            with connection.transaction():
                connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                take_snapshot(connection)
                barrier.wait()
                return act(connection)

        return work

    return together([work_of(*pair) for pair in zip(connections, acts, strict=True)])


def accepted(results: Sequence[Row | psycopg.Error]) -> list[Row]:
    return [one for one in results if not isinstance(one, psycopg.Error)]


# Races between the functions.


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_isolation
def test_of_openers_at_once_one_opens_the_next_attempt(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    connections = [login("executor") for _ in range(WRITERS)]
    for number in (1, 2, 3):
        results = at_once(
            connections, isolation, *[lambda one: open_next(one, log) for _ in connections]
        )
        assert accepted(results) == [(number, "w")]
        code = "P7401" if isolation == "READ COMMITTED" else "40001"
        assert errors_of(results) == [code] * (WRITERS - 1)
        close(owner, log, number)
    assert len(recorded(owner, log)) == 6


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_isolation
def test_of_closers_at_once_one_closes_and_the_others_get_what_it_recorded(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    open_next(owner, log)
    connections = [login("executor") for _ in range(WRITERS)]
    results = at_once(
        connections, isolation, *[lambda one: close(one, log, 1) for _ in connections]
    )
    if isolation == "READ COMMITTED":
        assert accepted(results) == [accepted(results)[0]] * WRITERS
    else:
        assert errors_of(results) == ["40001"] * (WRITERS - 1)
    assert recorded(owner, log) == [(1, "OPEN", None), (1, "CLOSE", "FAILED")]


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_isolation
def test_of_two_outcomes_at_once_one_is_recorded(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    open_next(owner, log)
    results = at_once(
        [login("executor"), login("executor")],
        isolation,
        lambda one: close(one, log, 1, "SUCCEEDED"),
        lambda one: close(one, log, 1, "FAILED"),
    )
    ((_, outcome, _),) = accepted(results)
    assert errors_of(results) == ["P7401" if isolation == "READ COMMITTED" else "40001"]
    assert recorded(owner, log) == [(1, "OPEN", None), (1, "CLOSE", outcome)]


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_an_opener_waits_for_the_closer_to_commit_or_not(
    owner: Connect, login: Login, background: ThreadPoolExecutor, log: str, end: str
) -> None:
    open_next(owner, log)
    closer, opener = login("executor"), login("executor")
    begin(closer, "READ COMMITTED")
    close(closer, log, 1)
    waiting = background.submit(open_next, opener, log)
    assert await_blocked(owner, backend(opener)) == [backend(closer)]
    closer.execute(end)
    if end == "COMMIT":
        assert waiting.result(PATIENCE_SECONDS) == (2, "w")
    else:
        found = refused(lambda: waiting.result(PATIENCE_SECONDS))
        assert_invariant(found, "INV-APP-002", "P7401", log)


@pytest.mark.invariant("INV-APP-002")
def test_an_enqueue_waits_for_the_log_and_continues(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    worker, other = login("executor"), login("executor")
    begin(worker, "READ COMMITTED")
    open_next(worker, LOGS[0])
    enqueuing = background.submit(
        other.execute,
        "SELECT FROM orchestration.enqueue_payment_outbox(p_items => jsonb_build_array("
        "jsonb_build_object('instruction_id', %s::uuid, 'participant_id', 'p', 'idempotency_key',"
        " 'k', 'rail_type', 'SEPA', 'payload', '{}'::jsonb)))",
        (P,),
    )
    assert await_blocked(owner, backend(other)) == [backend(worker)]
    worker.execute("COMMIT")
    enqueuing.result(PATIENCE_SECONDS)


# Snapshots that are older than the log.


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_snapshot
def test_an_older_snapshot_gets_40001_if_the_attempt_was_closed_since(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    open_next(owner, log)
    worker = login("executor")
    begin(worker, isolation)
    take_snapshot(worker)
    close(owner, log, 1)
    assert refused(lambda: open_next(worker, log)).sqlstate == "40001"
    worker.execute("ROLLBACK")
    assert open_next(worker, log) == (2, "w")


@pytest.mark.invariant("INV-APP-002", "INV-API-002")
@each_log
@each_snapshot
@pytest.mark.parametrize("seen", range(3))
def test_an_older_snapshot_gets_40001_if_the_attempt_was_opened_since(
    owner: Connect, login: Login, isolation: str, log: str, seen: int
) -> None:
    """The snapshot sees nothing of the log, the first attempt open, or the first attempt closed."""
    acts = [
        lambda: open_next(owner, log),
        lambda: close(owner, log, 1),
        lambda: open_next(owner, log),
    ]
    for act in acts[:seen]:
        act()
    worker = login("executor")
    begin(worker, isolation)
    take_snapshot(worker)
    for act in acts[seen:]:
        act()
    assert refused(lambda: close(worker, log, 2)).sqlstate == "40001"
    worker.execute("ROLLBACK")
    assert close(worker, log, 2)[:2] == (2, "FAILED")


@pytest.mark.invariant("INV-APP-002", "INV-API-002")
@each_log
@each_snapshot
def test_a_snapshot_that_sees_the_whole_log_gets_the_refusal(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    worker = login("executor")

    def told(act: Callable[[], object]) -> tuple[str | None, str | None]:
        begin(worker, isolation)
        take_snapshot(worker)
        found = refused(act)
        worker.execute("ROLLBACK")
        return found.sqlstate, found.constraint

    before = recorded(owner, log)
    assert told(lambda: close(worker, log, 1)) == ("P0002", "INV-API-002")
    assert recorded(owner, log) == before
    open_next(owner, log)
    assert told(lambda: open_next(worker, log)) == ("P7401", "INV-APP-002")
    assert told(lambda: close(worker, log, 2)) == ("P0002", "INV-API-002")
    close(owner, log, 1)
    assert told(lambda: close(worker, log, 1, "ABANDONED")) == ("P7401", "INV-APP-002")
    assert told(lambda: close(worker, log, 2)) == ("P0002", "INV-API-002")
    open_next(owner, log)
    close(owner, log, 2, "SUCCEEDED")
    assert told(lambda: open_next(worker, log)) == ("P7401", "INV-APP-002")
    assert told(lambda: close(worker, log, 3)) == ("P0002", "INV-API-002")
    assert len(recorded(owner, log)) == 4


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_snapshot
def test_a_refusal_that_is_caught_in_an_older_isolation_leaves_nothing(
    owner: Connect, login: Login, isolation: str, log: str
) -> None:
    open_next(owner, log)
    worker = login("executor")
    begin(worker, isolation)
    worker.execute("SAVEPOINT here")
    assert refused(lambda: open_next(worker, log)).sqlstate == "P7401"
    worker.execute("ROLLBACK TO here")
    worker.execute("COMMIT")
    assert recorded(owner, log) == [(1, "OPEN", None)]


# Rows that are inserted by hand.


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_isolation
@pytest.mark.parametrize("phase", ["OPEN", "CLOSE"])
def test_of_two_rows_of_one_key_the_primary_key_lets_one_in(
    owner: Connect,
    superuser: Connect,
    background: ThreadPoolExecutor,
    isolation: str,
    log: str,
    phase: str,
) -> None:
    if phase == "CLOSE":
        open_next(owner, log)
    begin(owner, isolation)
    insert(owner, log, 1, phase)
    begin(superuser, isolation)
    waiting = background.submit(insert, superuser, log, 1, phase)
    assert await_blocked(owner, backend(superuser)) == [backend(owner)]
    owner.execute("COMMIT")
    found = refused(lambda: waiting.result(PATIENCE_SECONDS))
    superuser.execute("ROLLBACK")
    if isolation == "SERIALIZABLE" and found.sqlstate == "40001":
        return
    assert (found.sqlstate, found.constraint) == ("23505", f"pk_{log}")


@pytest.mark.invariant("INV-APP-002")
@each_log
@each_isolation
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_an_opener_that_meets_such_a_row_counts_it(
    owner: Connect,
    login: Login,
    background: ThreadPoolExecutor,
    isolation: str,
    log: str,
    end: str,
) -> None:
    worker, observer = login("executor"), login("executor")
    begin(owner, "READ COMMITTED")
    insert(owner, log, 1)
    begin(worker, isolation)
    waiting = background.submit(open_next, worker, log)
    assert await_blocked(observer, backend(worker)) == [backend(owner)]
    owner.execute(end)
    if end == "ROLLBACK":
        assert waiting.result(PATIENCE_SECONDS) == (1, "w")
        worker.execute("COMMIT")
        return
    found = refused(lambda: waiting.result(PATIENCE_SECONDS))
    worker.execute("ROLLBACK")
    assert found.sqlstate == ("P7401" if isolation == "READ COMMITTED" else "40001")
