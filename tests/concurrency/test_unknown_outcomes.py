"""An outcome becomes UNKNOWN, or becomes known, while another session enqueues, redrives or
completes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.concurrency.support import begin, errors_of, take_snapshot, together
from tests.support import (
    INSTRUCTIONS_EACH,
    ISOLATION_LEVELS,
    PARTICIPANTS,
    Connect,
    await_blocked,
    backend,
    instruction_id,
    scalar,
)

pytestmark = pytest.mark.instructed

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
Login = Callable[[str], Connect]

ROUNDS = 200
P = instruction_id("p", 0)


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT * FROM orchestration.verify_outbox()").fetchall() == []


def enqueue(
    connection: Connect, key: str, id: UUID = P, participant_id: str = "p", **changed: object
) -> str:
    item = {
        "instruction_id": str(id),
        "participant_id": participant_id,
        "idempotency_key": key,
        "rail_type": "SEPA",
        "payload": {},
    }
    return str(
        scalar(
            connection,
            "SELECT outbox_id FROM orchestration.enqueue_payment_outbox(%s)",
            (json.dumps([item | changed]),),
        )
    )


def claim(connection: Connect, batch_size: int = 1) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT outbox_id::text, lease_token::text, instruction_id, participant_id"
        " FROM orchestration.claim_outbox_batch('w', %s, '1 hour')",
        (batch_size,),
    ).fetchall()
    names = ("outbox_id", "lease_token", "instruction_id", "participant_id")
    return [dict(zip(names, row, strict=True)) for row in rows]


def complete(connection: Connect, item: dict[str, Any], state: str, outcome: str | None) -> None:
    told = {"outbox_id": item["outbox_id"], "lease_token": item["lease_token"], "worker_id": "w"}
    connection.execute(
        "SELECT FROM orchestration.complete_outbox_attempt(%s)",
        (json.dumps([told | {"state": state, "outcome": outcome}]),),
    )


def by_worker(connection: Connect, item: dict[str, Any]) -> None:
    complete(connection, item, "FAILED", "UNKNOWN")


def by_retry(connection: Connect, item: dict[str, Any]) -> None:
    complete(connection, item, "RETRYABLE", None)


def by_repair(connection: Connect, _item: dict[str, Any]) -> None:
    connection.execute("SELECT FROM orchestration.repair_expired_leases()")


def by_claim(connection: Connect, _item: dict[str, Any]) -> None:
    connection.execute("SELECT FROM orchestration.claim_outbox_batch('w', 1, '1 hour')")


def resolve(connection: Connect, outbox_id: str, outcome: str) -> None:
    connection.execute(
        "SELECT FROM orchestration.resolve_outbox_item(%s, %s, 'test')", (outbox_id, outcome)
    )


def redrive(connection: Connect, outbox_id: str) -> None:
    connection.execute("SELECT FROM orchestration.redrive_outbox_item(%s)", (outbox_id,))


def settle(connection: Connect, waiting: "Future[Any]") -> str | None:
    """Return the code of the error that the act in the background finally got, or None."""
    try:
        waiting.result(timeout=60)
    except psycopg.Error as error:
        connection.execute("ROLLBACK")
        return error.sqlstate
    connection.execute("COMMIT")
    return None


def unresolved(owner: Connect, id: UUID = P) -> int:
    return int(
        scalar(owner, "SELECT unresolved FROM orchestration.instructions WHERE id = %s", (id,))
    )


@pytest.mark.invariant("INV-OUT-010")
@each_isolation
@pytest.mark.parametrize("end", [by_worker, by_retry, by_repair, by_claim])
def test_an_enqueue_whose_snapshot_is_older_than_the_unknown_outcome_is_refused(
    owner: Connect, login: Login, background: ThreadPoolExecutor, isolation: str, end: Any
) -> None:
    service, worker = login("executor"), login("executor")
    enqueue(service, "first", max_attempts=1)
    (item,) = claim(worker)
    if end in (by_repair, by_claim):
        owner.execute(
            "UPDATE orchestration.payment_outbox_pending"
            " SET lease_expires_at = clock_timestamp() - interval '1 second'"
        )
    begin(service, isolation)
    take_snapshot(service)
    begin(worker, "READ COMMITTED")
    end(worker, item)
    waiting = background.submit(enqueue, service, "second")
    assert await_blocked(owner, backend(service)) == [backend(worker)]
    worker.execute("COMMIT")
    expected = "P7404" if isolation == "READ COMMITTED" else "40001"
    assert settle(service, waiting) == expected
    assert unresolved(owner) == 1


@pytest.mark.invariant("INV-OUT-010")
@each_isolation
def test_a_completion_waits_for_the_enqueue_that_came_first(
    owner: Connect, login: Login, background: ThreadPoolExecutor, isolation: str
) -> None:
    service, worker = login("executor"), login("executor")
    enqueue(service, "first")
    (item,) = claim(worker)
    begin(service, isolation)
    enqueue(service, "second")
    begin(worker, "READ COMMITTED")
    waiting = background.submit(by_worker, worker, item)
    assert await_blocked(owner, backend(worker)) == [backend(service)]
    service.execute("COMMIT")
    assert settle(worker, waiting) is None
    assert unresolved(owner) == 1


@pytest.mark.invariant("INV-OUT-010")
def test_a_repair_does_not_wait_for_an_enqueue_and_closes_the_item_afterwards(
    owner: Connect, login: Login
) -> None:
    service, worker = login("executor"), login("executor")
    enqueue(service, "first", max_attempts=1)
    (item,) = claim(worker)
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second'"
    )
    begin(service, "READ COMMITTED")
    enqueue(service, "second")
    by_repair(worker, item)
    assert unresolved(owner) == 0
    service.execute("COMMIT")
    by_repair(worker, item)
    assert unresolved(owner) == 1


@pytest.mark.invariant("INV-OUT-010")
@each_isolation
def test_of_an_unknown_outcome_and_a_second_key_at_once_only_one_order_is_possible(
    owner: Connect, login: Login, isolation: str
) -> None:
    """In each of 200 rounds, on a new instruction, the snapshot of the enqueue is older than the
    completion. If the second key was stored, it was stored before the outcome was UNKNOWN."""
    service, worker = login("executor"), login("executor")
    instructions = [
        (instruction_id(participant, number), participant)
        for number in range(INSTRUCTIONS_EACH)
        for participant in PARTICIPANTS
    ][:ROUNDS]
    with service.transaction():
        for id, participant in instructions:
            enqueue(service, "first", id, participant)
    items = claim(worker, ROUNDS)
    assert len(items) == ROUNDS

    def second(item: dict[str, Any]) -> Callable[[Any], str]:
        def work(barrier: Any) -> str:
            with service.transaction():
                service.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                take_snapshot(service)
                barrier.wait()
                return enqueue(service, "second", item["instruction_id"], item["participant_id"])

        return work

    def ends(item: dict[str, Any]) -> Callable[[Any], str]:
        def work(barrier: Any) -> str:
            barrier.wait()
            by_worker(worker, item)
            return "ended"

        return work

    seen: Counter[str | None] = Counter()
    for item in items:
        results = together([second(item), ends(item)])
        assert results[1] == "ended"
        seen.update(errors_of(results) or [None])
    assert set(seen) <= {None, "P7404" if isolation == "READ COMMITTED" else "40001"}
    # In commit order, because a second key that was committed after the end would have a greater
    # number.
    late = owner.execute(
        "SELECT count(*) FROM orchestration.payment_outbox_items i"
        " JOIN orchestration.payment_outbox_items f USING (instruction_id)"
        " JOIN orchestration.payment_outbox_attempts t ON t.outbox_id = f.outbox_id"
        " WHERE i.idempotency_key = 'second' AND f.idempotency_key = 'first'"
        " AND t.outcome = 'UNKNOWN'"
        " AND pg_xact_commit_timestamp((i.xact_id::text)::xid)"
        " > pg_xact_commit_timestamp((t.xact_id::text)::xid)"
    ).fetchone()
    assert late == (0,)
    assert scalar(owner, "SELECT count(*) FROM orchestration.payment_outbox_unresolved") == ROUNDS


@pytest.mark.invariant("INV-OUT-006", "INV-OUT-011")
@each_isolation
def test_a_redrive_whose_snapshot_is_older_than_a_resolution_is_refused(
    owner: Connect, login: Login, background: ThreadPoolExecutor, isolation: str
) -> None:
    worker, control, other = login("executor"), login("control"), login("control")
    enqueue(worker, "first")
    (item,) = claim(worker)
    by_worker(worker, item)
    resolve(control, item["outbox_id"], "NOT_SENT")
    begin(other, isolation)
    take_snapshot(other)
    begin(control, "READ COMMITTED")
    resolve(control, item["outbox_id"], "SENT")
    waiting = background.submit(redrive, other, item["outbox_id"])
    assert await_blocked(owner, backend(other)) == [backend(control)]
    control.execute("COMMIT")
    expected = "P7005" if isolation == "READ COMMITTED" else "40001"
    assert settle(other, waiting) == expected


@pytest.mark.invariant("INV-OUT-010", "INV-OUT-011")
@each_isolation
def test_a_rejection_that_does_not_see_a_late_sent_ends_unknown_or_is_repeated(
    owner: Connect, login: Login, background: ThreadPoolExecutor, isolation: str
) -> None:
    first, second = login("executor"), login("executor")
    enqueue(first, "first")
    (lost,) = claim(first)
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second'"
    )
    (item,) = claim(second)
    begin(second, isolation)
    take_snapshot(second)
    begin(first, "READ COMMITTED")
    first.execute(
        "SELECT FROM orchestration.record_late_result(%s, 1, 'SENT', %s, p_recorded_by => 'w')",
        (lost["outbox_id"], lost["lease_token"]),
    )
    waiting = background.submit(complete, second, item, "FAILED", "REJECTED")
    assert await_blocked(owner, backend(second)) == [backend(first)]
    first.execute("COMMIT")
    if isolation == "READ COMMITTED":
        assert settle(second, waiting) is None
    else:
        assert settle(second, waiting) == "40001"
        complete(second, item, "FAILED", "REJECTED")
    assert unresolved(owner) == 1


@pytest.mark.invariant("INV-OUT-011")
def test_of_sixteen_equal_late_results_at_once_one_is_stored(owner: Connect, login: Login) -> None:
    worker = login("executor")
    enqueue(worker, "first")
    (item,) = claim(worker)
    by_worker(worker, item)

    def record(connection: Connect) -> Callable[[Any], bool]:
        def work(barrier: Any) -> bool:
            barrier.wait()
            return bool(
                scalar(
                    connection,
                    "SELECT replayed FROM orchestration.record_late_result("
                    "%s, 1, 'SENT', %s, p_recorded_by => 'w')",
                    (item["outbox_id"], item["lease_token"]),
                )
            )

        return work

    results = together([record(login("executor")) for _ in range(16)])
    assert sorted(results) == [False] + [True] * 15  # type: ignore[type-var]
