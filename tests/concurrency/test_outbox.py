"""The outbox under concurrency: a key has one item, a lease one worker, and a number one item."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import URL
from tools import scratch

from tests.concurrency.support import begin, take_snapshot, together
from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    Refusal,
    assert_invariant,
    authorize_instructions,
    await_blocked,
    backend,
    instruction_id,
)

pytestmark = pytest.mark.instructed

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])

Lease = dict[str, str]
T = TypeVar("T")


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT * FROM orchestration.verify_outbox()").fetchall() == []


def instruct(owner: Connect, *participants: str) -> None:
    """Create an authorized instruction for each participant that the template does not have."""
    authorize_instructions(owner, [(instruction_id(one, 0), one) for one in participants])


def entry(key: str, participant_id: str = "p", of: str | None = None) -> dict[str, Any]:
    """An item of the participant's instruction, or of another participant's."""
    return {
        "instruction_id": str(instruction_id(of or participant_id, 0)),
        "participant_id": participant_id,
        "idempotency_key": key,
        "rail_type": "SEPA",
        "payload": {"key": key},
    }


def enqueue(connection: Connect, *entries: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the records: outbox_id, sequence_id, created_at."""
    return connection.execute(
        "SELECT outbox_id::text, sequence_id, created_at"
        " FROM orchestration.enqueue_payment_outbox(p_items => %s)",
        (json.dumps(entries),),
    ).fetchall()


def claim(connection: Connect, worker_id: str, batch_size: int = 1) -> list[Lease]:
    rows = connection.execute(
        "SELECT outbox_id::text, lease_token::text FROM orchestration.claim_outbox_batch("
        "p_worker_id => %s, p_batch_size => %s, p_lease => interval '1 hour')",
        (worker_id, batch_size),
    ).fetchall()
    return [{"outbox_id": id, "lease_token": token, "worker_id": worker_id} for id, token in rows]


def complete(
    connection: Connect, leases: Sequence[Lease], state: str = "DISPATCHED", **told: str
) -> list[str | None]:
    rows = connection.execute(
        "SELECT state FROM orchestration.complete_outbox_attempt(p_completions => %s,"
        " p_partial => false)",
        (json.dumps([one | {"state": state} | told for one in leases]),),
    ).fetchall()
    return [row[0] for row in rows]


def renew(connection: Connect, lease: Lease) -> None:
    connection.execute(
        "SELECT orchestration.renew_outbox_lease(p_outbox_id => %s, p_lease_token => %s,"
        " p_worker_id => %s, p_lease => interval '1 hour')",
        (lease["outbox_id"], lease["lease_token"], lease["worker_id"]),
    )


def redrive(connection: Connect, outbox_id: str) -> str:
    row = connection.execute(
        "SELECT outbox_id::text FROM orchestration.redrive_outbox_item(p_outbox_id => %s)",
        (outbox_id,),
    ).fetchone()
    assert row is not None
    return str(row[0])


def expire(owner: Connect) -> None:
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second'"
        " WHERE lease_expires_at > clock_timestamp()"
    )


def numbers(owner: Connect, participant_id: str = "p") -> list[int]:
    rows = owner.execute(
        "SELECT sequence_id FROM orchestration.payment_outbox_items WHERE participant_id = %s"
        " ORDER BY sequence_id",
        (participant_id,),
    ).fetchall()
    return [row[0] for row in rows]


def history(owner: Connect, outbox_id: str) -> list[tuple[int, str]]:
    return owner.execute(
        "SELECT attempt_no, state FROM orchestration.payment_outbox_attempts WHERE outbox_id = %s"
        " ORDER BY attempt_no, phase DESC",
        (outbox_id,),
    ).fetchall()


def in_transaction(
    connection: Connect, isolation: str, act: Callable[[], T]
) -> Callable[[threading.Barrier], T]:
    """Run one transaction. Its snapshot is taken before any other transaction acts."""

    def work(barrier: threading.Barrier) -> T:
        with connection.transaction():
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            take_snapshot(connection)
            barrier.wait()
            return act()

    return work


def persist(connection: Connect, isolation: str, act: Callable[[], T], *, keep: bool = True) -> T:
    """Run `act` in a transaction, and repeat it after each serialization failure. Other errors are
    raised."""
    while True:
        try:
            with connection.transaction(force_rollback=not keep):
                connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                return act()
        except psycopg.errors.SerializationFailure:
            continue


def accepted(results: Sequence[T | psycopg.Error]) -> list[T]:
    return [one for one in results if not isinstance(one, psycopg.Error)]


def codes(results: Sequence[object]) -> list[str | None]:
    return [one.sqlstate for one in results if isinstance(one, psycopg.Error)]


# One key, one item.


@pytest.mark.invariant("INV-OUT-004", "INV-OUT-007")
@each_isolation
def test_of_sixteen_enqueues_of_one_key_one_is_stored(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    results = together(
        [
            in_transaction(connection, isolation, lambda c=connection: enqueue(c, entry("k")))
            for connection in (login("executor") for _ in range(16))
        ]
    )
    assert numbers(owner) == [1]
    returned = accepted(results)
    assert len({tuple(rows[0]) for rows in returned}) == 1
    if isolation == "READ COMMITTED":
        assert len(returned) == 16
    else:
        assert set(codes(results)) == {"40001"}
        assert len(returned) == 1


@pytest.mark.invariant("INV-OUT-004", "INV-OUT-006")
@each_isolation
@pytest.mark.parametrize("snapshot", ["before the enqueue", "before the completion"])
@pytest.mark.parametrize("participant", ["p", "q"], ids=["same participant", "another participant"])
def test_a_key_that_was_finished_meanwhile_is_never_accepted_again(
    owner: Connect,
    login: Callable[[str], Connect],
    isolation: str,
    snapshot: str,
    participant: str,
) -> None:
    late, worker = login("executor"), login("executor")
    enqueue(worker, entry("other"), entry("other", "q"))
    complete(worker, claim(worker, "w", 2))
    if snapshot == "before the completion":
        first = enqueue(worker, entry("k"))
    begin(late, isolation)
    take_snapshot(late)
    if snapshot == "before the enqueue":
        first = enqueue(worker, entry("k"))
    complete(worker, claim(worker, "w"))
    refused: Refusal | None = None
    try:
        replayed = enqueue(late, entry("k", participant, of="p"))
        late.execute("COMMIT")
    except psycopg.Error as error:
        refused = Refusal.of(error)
        late.execute("ROLLBACK")
    unseen = isolation != "READ COMMITTED" and snapshot == "before the enqueue"
    if participant == "q":
        assert refused is not None
        if unseen:
            # The instruction belongs to another participant, whatever was enqueued meanwhile.
            assert_invariant(refused, "INV-INS-005", "23503", "instructions")
        else:
            assert_invariant(refused, "INV-OUT-004", "P7004", "payment_outbox_items")
    elif unseen:
        assert refused is not None
        assert refused.sqlstate == "40001"
    else:
        assert refused is None
        assert replayed == first
    count = owner.execute(
        "SELECT count(*) FROM orchestration.payment_outbox_items WHERE idempotency_key = 'k'"
    ).fetchone()
    assert count == (1,)
    assert claim(worker, "w") == []


@pytest.mark.invariant("INV-INS-005", "INV-OUT-007")
@each_isolation
def test_an_instruction_is_not_another_participant_s_while_its_own_enqueues(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    first, second = login("executor"), login("executor")
    begin(first, isolation)
    take_snapshot(first)
    begin(second, isolation)
    take_snapshot(second)
    enqueue(first, entry("k"))
    # It fails immediately, because it has no lock to wait for.
    second.execute("SET LOCAL lock_timeout = '1ms'")
    with pytest.raises(psycopg.Error) as raised:
        enqueue(second, entry("before", "q"), entry("k", "q", of="p"), entry("after", "q"))
    found = Refusal.of(raised.value)
    assert_invariant(found, "INV-INS-005", "23503", "instructions")
    assert found.keys == {
        "id": str(instruction_id("p", 0)),
        "participant_id": "q",
        "idempotency_key": "k",
    }
    second.execute("ROLLBACK")
    first.execute("COMMIT")
    assert [numbers(owner, one) for one in "pq"] == [[1], []]
    # The key now exists, and belongs to another participant.
    with pytest.raises(psycopg.Error) as raised:
        enqueue(second, entry("k", "q", of="p"))
    assert_invariant(Refusal.of(raised.value), "INV-OUT-004", "P7004", "payment_outbox_items")
    enqueue(second, entry("before", "q"), entry("after", "q"))
    assert numbers(owner, "q") == [1, 2]


@pytest.mark.invariant("INV-INS-005", "INV-OUT-004", "INV-OUT-007")
def test_one_key_by_many_participants_at_once_is_the_item_of_the_instruction_s_own(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    participants = ["p", *(f"p{n}" for n in range(7))]
    instruct(owner, *participants[1:])

    def of(participant_id: str) -> Callable[[threading.Barrier], list[tuple[Any, ...]]]:
        connection = login("executor")
        entries = (entry("k", participant_id, of="p"), entry("own", participant_id))
        return in_transaction(connection, "READ COMMITTED", lambda: enqueue(connection, *entries))

    own, *others = together([of(one) for one in participants])
    assert not isinstance(own, psycopg.Error)
    assert len(codes(others)) == len(others)
    # The instruction is another's, or, if its own participant was first, the key has other content.
    assert set(codes(others)) <= {"23503", "P7004"}
    assert numbers(owner) == [1, 2]
    stored = owner.execute("SELECT count(*) FROM orchestration.payment_outbox_items").fetchone()
    assert stored == (2,)


# One order of locks.


@pytest.mark.invariant("INV-OUT-007")
@pytest.mark.parametrize("known", [True, False], ids=["known", "missing"])
@each_isolation
def test_bulk_enqueues_with_participants_in_opposite_order_do_not_deadlock(
    owner: Connect, login: Callable[[str], Connect], isolation: str, known: bool
) -> None:
    participants = [f"p{n}" for n in range(20)]
    instruct(owner, *participants)
    if known:
        enqueue(owner, *(entry("first", one) for one in participants))
    rounds = 5

    def work_of(name: str, order: list[str]) -> Callable[[threading.Barrier], int]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> int:
            barrier.wait()
            for n in range(rounds):
                entries = [entry(f"{name}{n}", one) for one in order]
                persist(connection, isolation, lambda e=entries: enqueue(connection, *e))
            return rounds

        return work

    shuffled = participants[1::2] + participants[::2]
    results = together(
        [
            work_of("up", participants),
            work_of("down", participants[::-1]),
            work_of("odd", shuffled),
            work_of("back", shuffled[::-1]),
        ]
    )
    assert codes(results) == []
    made = 4 * rounds + known
    assert {one: numbers(owner, one) for one in participants} == {
        one: list(range(1, made + 1)) for one in participants
    }


@pytest.mark.invariant("INV-OUT-007")
def test_participants_of_whom_one_is_missing_are_locked_in_the_same_order(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    instruct(owner, "a", "b", "c")
    enqueue(owner, entry("first", "a"), entry("second", "c"))
    one, two, three = login("executor"), login("executor"), login("executor")
    # While `c` is locked, both wait for it, and neither waits for a lock of the other.
    begin(three, "READ COMMITTED")
    enqueue(three, entry("held", "c"))
    begin(one, "READ COMMITTED")
    begin(two, "READ COMMITTED")
    waiting = background.submit(enqueue, one, entry("1", "c"), entry("2", "b"), entry("3", "a"))
    await_blocked(owner, backend(one))
    other = background.submit(enqueue, two, entry("4", "a"), entry("5", "c"))
    await_blocked(owner, backend(two))
    three.execute("COMMIT")
    assert len(waiting.result(30)) == 3
    one.execute("COMMIT")
    assert len(other.result(30)) == 2
    two.execute("COMMIT")
    assert [numbers(owner, participant) for participant in "abc"] == [
        [1, 2, 3],
        [1],
        [1, 2, 3, 4],
    ]


@pytest.mark.invariant("INV-OUT-007")
@each_isolation
def test_numbers_have_no_gap_though_some_enqueues_roll_back(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    rounds = 12

    def work_of(name: int) -> Callable[[threading.Barrier], int]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> int:
            kept = 0
            barrier.wait()
            for n in range(rounds):
                keep = (n + name) % 3 > 0

                entries = entry(f"{name}-{n}"), entry(f"{name}-{n}+")
                persist(connection, isolation, lambda e=entries: enqueue(connection, *e), keep=keep)
                kept += keep
            return kept

        return work

    results = together([work_of(n) for n in range(8)])
    assert codes(results) == []
    assert numbers(owner) == list(range(1, 2 * sum(accepted(results)) + 1))


@pytest.mark.invariant("INV-OUT-007")
def test_owners_who_leave_the_number_out_are_numbered_in_turn_with_the_function(
    owner: Connect,
    login: Callable[[str], Connect],
    database: scratch.Database,
    connections: Callable[[URL], Connect],
) -> None:
    def by_hand() -> Callable[[threading.Barrier], None]:
        connection = connections(database.url)

        def work(barrier: threading.Barrier) -> None:
            barrier.wait()
            for _ in range(10):
                connection.execute(
                    "WITH i AS (INSERT INTO orchestration.payment_outbox_items"
                    " (instruction_id, participant_id, idempotency_key, rail_type, payload)"
                    " VALUES (%s, 'p', gen_random_uuid()::text, 'SEPA', '{}') RETURNING *)"
                    " INSERT INTO orchestration.payment_outbox_pending"
                    " (outbox_id, instruction_id, participant_id, sequence_id, rail_type)"
                    " SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type"
                    " FROM i",
                    (instruction_id("p", 0),),
                )

        return work

    def by_function(name: int) -> Callable[[threading.Barrier], None]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> None:
            barrier.wait()
            for n in range(10):
                enqueue(connection, entry(f"{name}-{n}"))

        return work

    results = together([by_hand(), by_hand(), by_function(0), by_function(1)])
    assert codes(results) == []
    assert numbers(owner) == list(range(1, 41))


# Claiming.


def fill(connection: Connect, count: int) -> None:
    enqueue(connection, *(entry(f"k{n}") for n in range(count)))


@pytest.mark.invariant("INV-OUT-008", "INV-OUT-005")
def test_eight_workers_claim_two_thousand_items_each_exactly_once(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    fill(owner, 2_000)

    def work_of(name: str) -> Callable[[threading.Barrier], list[Lease]]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> list[Lease]:
            mine: list[Lease] = []
            barrier.wait()
            while batch := claim(connection, name, 25):
                assert len(batch) <= 25
                assert complete(connection, batch) == ["DISPATCHED"] * len(batch)
                mine += batch
            return mine

        return work

    results = together([work_of(f"w{n}") for n in range(8)])
    assert codes(results) == []
    claimed = [one["outbox_id"] for mine in accepted(results) for one in mine]
    assert len(claimed) == len(set(claimed)) == 2_000
    counted = owner.execute(
        "SELECT count(*), count(DISTINCT outbox_id), max(attempt_no)"
        " FROM orchestration.payment_outbox_attempts WHERE state = 'DISPATCHED'"
    ).fetchone()
    assert counted == (2_000, 2_000, 1)


@pytest.mark.invariant("INV-OUT-003", "INV-OUT-008")
def test_claims_at_once_are_all_full_though_they_close_dead_items(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    # Of each three items in claim order, one ends at its ceiling, one is retried, and one is new.
    kinds = [{"max_attempts": 1}, {"max_attempts": 2}]
    enqueue(owner, *(entry(f"dead {n}") | kinds[n % 2] for n in range(400)))
    dead = claim(owner, "dead", 400)
    expire(owner)
    enqueue(owner, *(entry(f"new {n}") for n in range(200)))
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending p"
        " SET next_attempt_at = timestamptz '2020-01-01 00:00:00Z' + q.place * interval '1 second'"
        " FROM (SELECT outbox_id, row_number() OVER ("
        "   PARTITION BY i.max_attempts ORDER BY i.outbox_id) AS place"
        "   FROM orchestration.payment_outbox_items i) q"
        " WHERE q.outbox_id = p.outbox_id"
    )

    def work_of(name: str) -> Callable[[threading.Barrier], list[list[Lease]]]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> list[list[Lease]]:
            barrier.wait()
            return [claim(connection, name, 10) for _ in range(5)]

        return work

    results = together([work_of(f"w{n}") for n in range(8)])
    assert codes(results) == []
    batches = [batch for mine in accepted(results) for batch in mine]
    # 40 batches of 10 are all of the 400 items that are due and free.
    assert [len(batch) for batch in batches] == [10] * 40
    assert len({one["outbox_id"] for batch in batches for one in batch}) == 400
    assert claim(owner, "w", 10) == []
    ended = owner.execute(
        "SELECT count(*) FROM orchestration.payment_outbox_attempts WHERE state = 'FAILED'"
    ).fetchone()
    assert (len(dead), ended) == (400, (200,))


@pytest.mark.invariant("INV-OUT-008", "INV-OUT-006")
@each_snapshot
def test_above_read_committed_workers_get_success_or_40001_and_nothing_else(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    fill(owner, 60)

    def work_of(name: str) -> Callable[[threading.Barrier], list[Lease]]:
        connection = login("executor")

        def work(barrier: threading.Barrier) -> list[Lease]:
            mine: list[Lease] = []
            barrier.wait()
            while batch := persist(connection, isolation, lambda: claim(connection, name, 10)):
                persist(connection, isolation, lambda b=batch: complete(connection, b))
                mine += batch
            return mine

        return work

    results = together([work_of(f"w{n}") for n in range(4)])
    assert codes(results) == []
    claimed = [one["outbox_id"] for mine in accepted(results) for one in mine]
    assert sorted(claimed) == sorted(set(claimed))
    # A worker that finds no free item stops. By then the others have completed what they had
    # claimed.
    assert len(claimed) == 60


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-005")
@each_isolation
def test_of_many_claims_of_one_expired_item_one_gets_it(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    claim(login("executor"), "dead")
    expire(owner)
    results = together(
        [
            in_transaction(c, isolation, lambda c=c, n=n: claim(c, f"w{n}"))
            for n, c in ((n, login("executor")) for n in range(8))
        ]
    )
    assert set(codes(results)) <= (set() if isolation == "READ COMMITTED" else {"40001"})
    assert sum(map(len, accepted(results))) == 1
    assert history(owner, outbox_id) == [
        (1, "DISPATCHING"),
        (1, "ZOMBIE_REQUEUE"),
        (2, "DISPATCHING"),
    ]


IMPATIENT = "SET lock_timeout = '1s'"
"""A statement that would wait for another transaction fails instead."""


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_passes_over_what_an_open_claim_holds(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    fill(owner, 3)
    first, second = login("executor"), login("executor")
    second.execute(IMPATIENT)
    begin(first, "READ COMMITTED")
    leases = claim(first, "w1", 1), claim(second, "w2", 10)
    first.execute("COMMIT")
    assert [len(mine) for mine in leases] == [1, 2]
    assert len({one["outbox_id"] for mine in leases for one in mine}) == 3


@pytest.mark.invariant("INV-OUT-008")
def test_a_repair_passes_over_what_an_open_repair_holds(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    fill(owner, 3)
    dead = claim(login("executor"), "dead", 3)
    expire(owner)
    first, second = login("control"), login("control")
    second.execute(IMPATIENT)
    begin(first, "READ COMMITTED")
    repaired = [
        connection.execute(
            "SELECT outbox_id::text FROM orchestration.repair_expired_leases(%s)", (limit,)
        ).fetchall()
        for connection, limit in ((first, 1), (second, 10))
    ]
    first.execute("COMMIT")
    assert [len(one) for one in repaired] == [1, 2]
    assert {id for one in repaired for (id,) in one} == {one["outbox_id"] for one in dead}


# A lease has one worker.


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-008")
@each_isolation
def test_a_claim_leaves_alone_what_is_being_renewed(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    enqueue(owner, entry("k"))
    holder, other = login("executor"), login("executor")
    (lease,) = claim(holder, "w1")
    begin(holder, isolation)
    renew(holder, lease)
    begin(other, isolation)
    assert claim(other, "w2") == []
    holder.execute("COMMIT")
    assert claim(other, "w2") == []
    other.execute("COMMIT")
    assert complete(holder, [lease]) == ["DISPATCHED"]


@pytest.mark.invariant("INV-OUT-002")
@each_isolation
@pytest.mark.parametrize("act", ["renew", "complete"])
def test_a_worker_who_waits_for_the_claim_of_its_expired_item_has_lost_it(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    act: str,
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    stale, other = login("executor"), login("executor")
    (lease,) = claim(stale, "w1")
    begin(stale, isolation)
    take_snapshot(stale)
    expire(owner)
    begin(other, isolation)
    (taken,) = claim(other, "w2")
    waiting = background.submit(
        (lambda: renew(stale, lease)) if act == "renew" else (lambda: complete(stale, [lease]))
    )
    if isolation == "READ COMMITTED":
        await_blocked(owner, backend(stale))
    other.execute("COMMIT")
    error = waiting.exception(30)
    assert isinstance(error, psycopg.Error)
    if isolation == "READ COMMITTED":
        assert_invariant(Refusal.of(error), "INV-OUT-002", "P7002", "payment_outbox_pending")
    else:
        assert error.sqlstate == "40001"
    stale.execute("ROLLBACK")
    assert complete(other, [taken]) == ["DISPATCHED"]
    assert history(owner, outbox_id) == [
        (1, "DISPATCHING"),
        (1, "ZOMBIE_REQUEUE"),
        (2, "DISPATCHING"),
        (2, "DISPATCHED"),
    ]


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-005")
@each_isolation
def test_a_completion_that_holds_the_item_keeps_claims_and_repairs_off(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    worker, other, repairer = login("executor"), login("executor"), login("control")
    (lease,) = claim(worker, "w1")
    begin(worker, isolation)
    assert complete(worker, [lease], "RETRYABLE") == ["RETRYABLE"]
    for connection in (other, repairer):
        begin(connection, isolation)
    assert claim(other, "w2") == []
    found = repairer.execute("SELECT * FROM orchestration.repair_expired_leases(10)").fetchall()
    assert found == []
    worker.execute("COMMIT")
    other.execute("COMMIT")
    repairer.execute("COMMIT")
    assert len(claim(other, "w2")) == 1
    assert history(owner, outbox_id) == [
        (1, "DISPATCHING"),
        (1, "RETRYABLE"),
        (2, "DISPATCHING"),
    ]


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-005", "INV-OUT-006")
@each_isolation
@pytest.mark.parametrize("expired", [False, True], ids=["running", "expired"])
def test_a_completion_against_claims_and_repairs_leaves_exactly_one_closing(
    owner: Connect, login: Callable[[str], Connect], isolation: str, expired: bool
) -> None:
    for n in range(4):
        ((outbox_id, *_),) = enqueue(owner, entry(f"k{n}"))
        worker, again, other, repairer = (
            login(role) for role in ("executor", "executor", "executor", "control")
        )
        (lease,) = claim(worker, "w1")
        if expired:
            expire(owner)
        completed, repeated, taken, repaired = together(
            [
                in_transaction(worker, isolation, lambda c=worker, one=lease: complete(c, [one])),
                in_transaction(again, isolation, lambda c=again, one=lease: complete(c, [one])),
                in_transaction(other, isolation, lambda c=other: claim(c, "w2")),
                in_transaction(
                    repairer,
                    isolation,
                    lambda c=repairer: c.execute(
                        "SELECT state FROM orchestration.repair_expired_leases(10)"
                    ).fetchall(),
                ),
            ]
        )
        allowed = {"40001"} if isolation != "READ COMMITTED" else set()
        if expired:
            assert set(codes([completed, repeated])) <= allowed | {"P7002"}
            assert len(codes([completed, repeated])) == 2
        else:
            assert set(codes([completed, repeated])) <= allowed
            assert accepted([completed, repeated])
            assert all(one == ["DISPATCHED"] for one in accepted([completed, repeated]))
        assert set(codes([taken, repaired])) <= allowed
        closings = [state for no, state in history(owner, outbox_id) if no == 1][1:]
        if expired:
            assert closings in (["ZOMBIE_REQUEUE"], [])
            assert accepted([taken, repaired])
        else:
            assert closings == ["DISPATCHED"]
            assert accepted([taken]) in ([], [[]])
        # The next claim gets what is left.
        expire(owner)
        for one in claim(owner, "w3", 10):
            complete(owner, [one])
        terminal = [state for _, state in history(owner, outbox_id) if state == "DISPATCHED"]
        assert terminal == ["DISPATCHED"]


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-006")
@each_isolation
def test_of_two_different_completions_at_once_one_is_recorded(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    one, two = login("executor"), login("executor")
    (lease,) = claim(one, "w")
    results = together(
        [
            in_transaction(one, isolation, lambda: complete(one, [lease])),
            in_transaction(
                two, isolation, lambda: complete(two, [lease], "FAILED", outcome="NOT_SENT")
            ),
        ]
    )
    (kept,) = accepted(results)
    assert codes(results) == ["P7002" if isolation == "READ COMMITTED" else "40001"]
    assert history(owner, outbox_id) == [(1, "DISPATCHING"), (1, kept[0])]


@pytest.mark.invariant("INV-OUT-002")
@each_isolation
def test_completions_of_the_same_items_in_opposite_order_do_not_deadlock(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    fill(owner, 200)
    one, two = login("executor"), login("executor")
    leases = claim(one, "w", 200)
    results = together(
        [
            in_transaction(one, isolation, lambda: complete(one, leases)),
            in_transaction(two, isolation, lambda: complete(two, leases[::-1])),
        ]
    )
    if isolation == "READ COMMITTED":
        assert results == [["DISPATCHED"] * 200] * 2
    else:
        assert codes(results) == ["40001"]
        assert accepted(results) == [["DISPATCHED"] * 200]


# Redriving.


@pytest.mark.invariant("INV-OUT-006", "INV-OUT-007")
@each_isolation
def test_of_many_redrives_at_once_there_is_one_successor(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    worker = login("executor")
    complete(worker, claim(worker, "w"), "FAILED", outcome="REJECTED")
    results = together(
        [
            in_transaction(connection, isolation, lambda c=connection: redrive(c, outbox_id))
            for connection in (login("control") for _ in range(6))
        ]
    )
    successors = set(accepted(results))
    if isolation == "READ COMMITTED":
        assert codes(results) == []
    else:
        assert set(codes(results)) == {"40001"}
    assert numbers(owner) == [1, 2]
    assert redrive(login("control"), outbox_id) in successors
    assert len(successors) == 1


@pytest.mark.invariant("INV-OUT-006")
@each_snapshot
@pytest.mark.parametrize("newest", ["the item itself", "its successor"])
@pytest.mark.parametrize("outcome", ["REJECTED", "UNKNOWN"])
def test_a_redrive_that_does_not_see_the_end_gets_40001(
    owner: Connect, login: Callable[[str], Connect], isolation: str, newest: str, outcome: str
) -> None:
    worker, control = login("executor"), login("control")
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    if newest == "its successor":
        complete(worker, claim(worker, "w"), "FAILED", outcome="REJECTED")
        redrive(control, outbox_id)
    lease = claim(worker, "w")
    begin(control, isolation)
    take_snapshot(control)
    complete(worker, lease, "FAILED", outcome=outcome)
    with pytest.raises(psycopg.errors.SerializationFailure):
        redrive(control, outbox_id)
    control.execute("ROLLBACK")

    begin(control, isolation)
    if (newest, outcome) == ("the item itself", "REJECTED"):
        assert redrive(control, outbox_id) != outbox_id
    else:
        with pytest.raises(psycopg.Error) as raised:
            redrive(control, outbox_id)
        assert_invariant(Refusal.of(raised.value), "INV-OUT-006", "P7005", "payment_outbox_items")
    control.execute("ROLLBACK")


@pytest.mark.invariant("INV-OUT-006")
def test_a_redrive_waits_for_the_completion_in_flight(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    worker, control = login("executor"), login("control")
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    lease = claim(worker, "w")
    with worker.transaction():
        complete(worker, lease, "FAILED", outcome="REJECTED")
        successor = background.submit(redrive, control, outbox_id)
        assert await_blocked(owner, backend(control)) == [backend(worker)]
    assert successor.result() != outbox_id
    assert numbers(owner) == [1, 2]


@pytest.mark.invariant("INV-OUT-004", "INV-OUT-006")
@each_isolation
def test_a_redrive_against_a_replay_of_its_key_leaves_one_successor(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    worker, service, control = login("executor"), login("executor"), login("control")
    complete(worker, claim(worker, "w"), "FAILED", outcome="REJECTED")
    replayed, redriven = together(
        [
            in_transaction(service, isolation, lambda: enqueue(service, entry("k"))[0][0]),
            in_transaction(control, isolation, lambda: redrive(control, outbox_id)),
        ]
    )
    allowed = set() if isolation == "READ COMMITTED" else {"40001"}
    assert set(codes([replayed, redriven])) <= allowed
    successor = redrive(control, outbox_id)
    assert set(accepted([replayed])) <= {outbox_id, successor}
    assert set(accepted([redriven])) <= {successor}
    assert numbers(owner) == [1, 2]


@pytest.mark.invariant("INV-INS-006")
@each_isolation
def test_a_redrive_and_the_end_of_its_instruction_never_wait_for_each_other(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    ((outbox_id, *_),) = enqueue(owner, entry("k"))
    holder, worker, control = login("executor"), login("executor"), login("control")
    complete(worker, claim(worker, "w"), "FAILED", outcome="REJECTED")
    # While the participant's row is locked, both wait for it.
    begin(holder, "READ COMMITTED")
    enqueue(holder, entry("held"))
    begin(control, isolation)
    redriven = background.submit(redrive, control, outbox_id)
    await_blocked(owner, backend(control))
    begin(worker, isolation)
    ended = background.submit(
        worker.execute,
        "SELECT FROM orchestration.fail_instruction(%s, 2, 'test')",
        (instruction_id("p", 0),),
    )
    await_blocked(owner, backend(worker))
    holder.execute("ROLLBACK")
    successor = redriven.result(30)
    control.execute("COMMIT")
    error = ended.exception(30)
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "P7404" or (isolation, error.sqlstate) == ("SERIALIZABLE", "40001")
    worker.execute("ROLLBACK")
    assert [one["outbox_id"] for one in claim(worker, "w")] == [successor]


@pytest.mark.invariant("INV-INS-006", "INV-INS-009")
@each_isolation
@pytest.mark.parametrize("end", ["complete_instruction(%s, 2)", "fail_instruction(%s, 2, 'test')"])
def test_an_end_that_waits_for_an_enqueue_lets_its_unit_start_the_execution(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    end: str,
) -> None:
    unit, late = login("executor"), login("executor")
    begin(unit, isolation)
    enqueue(unit, entry("k"))
    begin(late, isolation)
    ended = background.submit(
        late.execute, f"SELECT FROM orchestration.{end}", (instruction_id("p", 0),)
    )
    await_blocked(owner, backend(late))
    unit.execute("SELECT FROM orchestration.start_execution(%s, 2)", (instruction_id("p", 0),))
    unit.execute("COMMIT")
    error = ended.exception(30)
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == ("P7403" if isolation == "READ COMMITTED" else "40001")
    late.execute("ROLLBACK")
    assert len(claim(late, "w")) == 1
