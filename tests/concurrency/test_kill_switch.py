"""Kill switches under concurrency: a switch engages under load, and nothing that it stops commits
after it."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.concurrency.support import (
    PATIENCE_SECONDS,
    OverlappingWriters,
    begin,
    errors_of,
    refused,
    take_snapshot,
    together,
)
from tests.support import (
    ISOLATION_LEVELS,
    PARTICIPANTS,
    Connect,
    assert_invariant,
    await_blocked,
    backend,
    digest,
    instruction_id,
    scalar,
)

pytestmark = pytest.mark.instructed

Login = Callable[[str], Connect]

ROUNDS = 200
"""How often a switch is engaged under full load, in each isolation level."""
WRITERS_EACH = 3
STOCK = 300
"""The number of items that can be claimed when the first round begins."""

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    for function in ("verify_outbox", "verify_instructions"):
        assert owner.execute(f"SELECT * FROM orchestration.{function}()").fetchall() == []


def change(connection: Connect, act: str, scope: str, target: str | None = None) -> tuple[Any, ...]:
    """Return the event: event_no, occurred_at."""
    row = connection.execute(
        f"SELECT event_no, occurred_at FROM orchestration.{act}_kill_switch("
        "p_scope => %s, p_reason => 'test', p_target => %s)",
        (scope, target),
    ).fetchone()
    assert row is not None
    return row


def engage(connection: Connect, scope: str = "GLOBAL", target: str | None = None) -> Any:
    return change(connection, "engage", scope, target)


def release(connection: Connect, scope: str = "GLOBAL", target: str | None = None) -> Any:
    return change(connection, "release", scope, target)


# The gated acts.


def attest(connection: Connect, caller: str = "alice", key: str = "k") -> None:
    item = {
        "caller_identity": caller,
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": "instructions",
    }
    connection.execute("SELECT FROM orchestration.append_attestations(%s)", (json.dumps([item]),))


def enqueue(connection: Connect, participant_id: str = "p", *keys: str) -> None:
    items = [
        {
            "instruction_id": str(instruction_id(participant_id, 0)),
            "participant_id": participant_id,
            "idempotency_key": key,
            "rail_type": "SEPA",
            "payload": {"key": key},
        }
        for key in keys or ("k",)
    ]
    connection.execute("SELECT FROM orchestration.enqueue_payment_outbox(%s)", (json.dumps(items),))


def claim(connection: Connect, worker_id: str = "w") -> list[dict[str, str]]:
    rows = connection.execute(
        "SELECT outbox_id::text, lease_token::text FROM orchestration.claim_outbox_batch("
        "p_worker_id => %s, p_batch_size => 1, p_lease => interval '1 hour')",
        (worker_id,),
    ).fetchall()
    return [{"outbox_id": id, "lease_token": token, "worker_id": worker_id} for id, token in rows]


def receive(connection: Connect) -> None:
    row = {
        "participant_id": "p",
        "idempotency_key": "new",
        "instruction_type": "pain.001",
        "end_to_end_id": "new",
        "amount_minor": 100,
        "currency": "EUR",
        "debtor_account": "debtor",
        "creditor_account": "creditor",
        "payload": {},
        "attestation_id": str(
            scalar(
                connection,
                "SELECT attestation_id FROM orchestration.ingress_attestation_status LIMIT 1",
            )
        ),
        "policy_version_id": "instructions",
    }
    connection.execute("SELECT FROM orchestration.receive_instruction(%s)", (json.dumps([row]),))


def authorize(connection: Connect) -> None:
    connection.execute(
        "SELECT FROM orchestration.authorize_instruction("
        "(SELECT id FROM orchestration.instruction_status WHERE state = 'RECEIVED'), 1)"
    )


def execute(connection: Connect) -> None:
    connection.execute(
        "SELECT FROM orchestration.start_execution(%s, 2)", (instruction_id("p", 1),)
    )


GATED: dict[str, tuple[str, Callable[[Connect], object]]] = {
    "attesting": ("ingest", attest),
    "receiving": ("ingest", receive),
    "enqueuing": ("executor", enqueue),
    "authorizing": ("executor", authorize),
    "executing": ("executor", execute),
    "claiming": ("executor", claim),
}

each_gated = pytest.mark.parametrize("act", GATED)


def prepare(owner: Connect) -> None:
    """Create an item to claim and an instruction to authorize."""
    enqueue(owner, "q", "stock")
    owner.execute(
        "INSERT INTO orchestration.instructions (participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        " SELECT participant_id, 'received', instruction_type, end_to_end_id, amount_minor,"
        " currency, debtor_account, creditor_account, payload, attestation_id, policy_version_id"
        " FROM orchestration.instructions WHERE id = %s",
        (instruction_id("p", 0),),
    )


# A switch and the acts that it stops.


WRITES = {
    "attesting": "ingress_attestations",
    "enqueuing": "payment_outbox_items",
    "claiming": "payment_outbox_attempts",
}
STOPS = {
    "GLOBAL": ("attesting", "enqueuing", "claiming"),
    "INGEST": ("attesting", "enqueuing"),
    "DISPATCH": ("claiming",),
}

LATE = """
SELECT count(*) FILTER (WHERE pg_xact_commit_timestamp(w.xact_id::text::xid)
                              > pg_xact_commit_timestamp(k.xact_id::text::xid)),
       count(*)
FROM orchestration.{} w, orchestration.kill_switches k
WHERE k.event_no = %s AND w.xact_id >= %s
"""


def begins(superuser: Connect) -> int:
    """Return the id that the next transaction gets. No transaction may be in progress."""
    return int(scalar(superuser, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))


def late(superuser: Connect, act: str, event_no: int, since: int = 0) -> tuple[int, int]:
    """Return how many rows of the act were committed after the event, and how many there are. Only
    transactions from the id `since` count."""
    row = superuser.execute(LATE.format(WRITES[act]), (event_no, since)).fetchone()
    assert row is not None
    return (row[0], row[1])


@pytest.mark.superuser
@pytest.mark.invariant("INV-KIL-001", "INV-KIL-002")
@each_isolation
def test_a_switch_gets_in_under_overlapping_writers_and_nothing_it_stops_commits_after_it(
    superuser: Connect, login: Login, background: ThreadPoolExecutor, isolation: str
) -> None:
    enqueue(superuser, "bank-a", *map(str, range(STOCK)))
    control = login("control")
    control.execute("SET statement_timeout = '5s'")
    kinds = [kind for kind in WRITES for _ in range(WRITERS_EACH)]
    connections = [login(GATED[kind][0]) for kind in kinds]

    for round in range(ROUNDS):
        # The rounds before are over: what they wrote need not be counted again in each.
        since = begins(superuser)
        scope = list(STOPS)[round % len(STOPS)]

        def write(connection: Connect, writer: int, number: int, round: int = round) -> None:
            key = f"{round} {number}"
            if kinds[writer] == "attesting":
                attest(connection, f"caller {writer}", key)
            elif kinds[writer] == "enqueuing":
                enqueue(connection, PARTICIPANTS[writer % WRITERS_EACH], key)
            else:
                claim(connection, f"worker {writer}")

        writers = OverlappingWriters(connections, isolation, write)
        with writers.at_work(background) as futures:
            event_no, _ = engage(control, scope)
            stopped = [
                future.result(PATIENCE_SECONDS)
                for kind, future in zip(kinds, futures, strict=True)
                if kind in STOPS[scope]
            ]
        others = [
            future.result(PATIENCE_SECONDS)
            for kind, future in zip(kinds, futures, strict=True)
            if kind not in STOPS[scope]
        ]
        # Each stopped writer got P7501 in the end, and no other writer did. Older snapshots got
        # 40001.
        told = set() if isolation == "READ COMMITTED" else {"40001"}
        assert all("P7501" in codes for codes in stopped)
        assert set().union(*stopped) <= {"P7501"} | told
        assert set().union(*others) <= told
        for act in STOPS[scope]:
            after, written = late(superuser, act, event_no, since)
            assert after == 0
            assert written >= WRITERS_EACH
        release(control, scope)

    for writer, kind in enumerate(kinds):
        if kind == "attesting":
            assert scalar(
                superuser,
                "SELECT ok FROM orchestration.verify_attestation_chain(%s)",
                (f"caller {writer}",),
            )


@pytest.mark.superuser
@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("act", WRITES)
def test_without_its_gate_an_owner_s_event_overtakes_a_writer_in_flight(
    superuser: Connect, login: Login, act: str
) -> None:
    prepare(superuser)
    before = late(superuser, act, engage(login("control"), "RAIL", "none")[0])
    superuser.execute("DROP TRIGGER gate ON orchestration.kill_switches")
    role, write = GATED[act]
    caller = login(role)
    begin(caller, "READ COMMITTED")
    write(caller)
    # By hand, because the function takes the gate itself.
    event_no = scalar(
        superuser,
        "INSERT INTO orchestration.kill_switches (scope, action, reason)"
        " VALUES ('GLOBAL', 'ENGAGE', 'test') RETURNING event_no",
    )
    caller.execute("COMMIT")
    assert late(superuser, act, event_no) == (1, before[1] + 1)


@pytest.mark.invariant("INV-KIL-002")
@each_gated
@each_isolation
def test_a_switch_waits_for_a_writer_that_was_checked_before(
    owner: Connect, login: Login, background: ThreadPoolExecutor, act: str, isolation: str
) -> None:
    prepare(owner)
    role, write = GATED[act]
    caller, control = login(role), login("control")
    begin(caller, isolation)
    write(caller)
    engaging = background.submit(engage, control)
    assert await_blocked(owner, backend(control)) == [backend(caller)]
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switches") == 0
    judged = scalar(caller, "SELECT clock_timestamp()")
    caller.execute("COMMIT")
    # occurred_at is read after the gate was taken, so everything that was checked before is older.
    assert engaging.result(PATIENCE_SECONDS)[1] > judged


@pytest.mark.invariant("INV-KIL-001", "INV-KIL-002")
@each_gated
def test_under_read_committed_a_writer_that_waited_is_checked_against_the_new_state(
    owner: Connect, login: Login, background: ThreadPoolExecutor, act: str
) -> None:
    prepare(owner)
    role, write = GATED[act]
    caller, control = login(role), login("control")
    with control.transaction():
        engage(control)
        begin(caller, "READ COMMITTED")
        take_snapshot(caller)
        waiting = background.submit(lambda: refused(lambda: write(caller)))
        await_blocked(owner, backend(caller))
    found = waiting.result(PATIENCE_SECONDS)
    assert_invariant(found, "INV-KIL-001", "P7501", "kill_switches")


@pytest.mark.invariant("INV-KIL-001")
@each_gated
@each_isolation
def test_a_writer_that_waited_for_a_switch_that_was_undone_goes_on(
    owner: Connect, login: Login, background: ThreadPoolExecutor, act: str, isolation: str
) -> None:
    prepare(owner)
    role, write = GATED[act]
    caller, control = login(role), login("control")
    begin(caller, isolation)
    with control.transaction(force_rollback=True):
        engage(control)
        waiting = background.submit(write, caller)
        await_blocked(owner, backend(caller))
    waiting.result(PATIENCE_SECONDS)
    caller.execute("COMMIT")


@pytest.mark.invariant("INV-KIL-001", "INV-KIL-002")
@each_gated
@each_snapshot
def test_an_older_snapshot_gets_40001_and_never_passes(
    owner: Connect, login: Login, act: str, isolation: str
) -> None:
    prepare(owner)
    role, write = GATED[act]
    caller, control = login(role), login("control")

    def older(change: Callable[[], object]) -> str | None:
        begin(caller, isolation)
        take_snapshot(caller)
        change()
        found = refused(lambda: write(caller))
        caller.execute("ROLLBACK")
        return found.sqlstate

    assert older(lambda: engage(control)) == "40001"
    begin(caller, isolation)
    found = refused(lambda: write(caller))
    assert_invariant(found, "INV-KIL-001", "P7501", "kill_switches")
    caller.execute("ROLLBACK")
    # A transaction with an older snapshot gets 40001 even after the release, and for any other
    # target.
    assert older(lambda: release(control)) == "40001"
    assert older(lambda: engage(control, "RAIL", "none")) == "40001"
    begin(caller, isolation)
    write(caller)
    caller.execute("COMMIT")


@pytest.mark.invariant("INV-KIL-002")
@each_snapshot
def test_a_release_with_an_older_snapshot_gets_40001_if_the_switch_was_engaged_since(
    owner: Connect, login: Login, isolation: str
) -> None:
    control = login("control")
    begin(control, isolation)
    take_snapshot(control)
    engage(login("control"))
    assert refused(lambda: release(control)).sqlstate == "40001"
    control.execute("ROLLBACK")
    release(control)
    assert scalar(owner, "SELECT engaged FROM orchestration.kill_switch_state") is False


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO orchestration.ingress_attestations (caller_identity, idempotency_key,"
        " payload_hash, policy_version_id) VALUES ('a', 'k', repeat('0', 64), 'instructions')",
        "UPDATE orchestration.instructions SET state = 'AUTHORIZED' WHERE state = 'RECEIVED'",
        "UPDATE orchestration.instructions SET state = 'EXECUTING' WHERE state = 'AUTHORIZED'",
    ],
    ids=["attesting", "authorizing", "executing"],
)
@each_snapshot
def test_an_owner_s_older_snapshot_gets_40001_too(
    owner: Connect, login: Login, statement: str, isolation: str
) -> None:
    prepare(owner)
    begin(owner, isolation)
    take_snapshot(owner)
    engage(login("control"))
    assert refused(lambda: owner.execute(statement)).sqlstate == "40001"
    owner.execute("ROLLBACK")


@pytest.mark.invariant("INV-KIL-001")
@each_isolation
def test_a_completion_ignores_a_switch_that_its_snapshot_does_not_see(
    owner: Connect, login: Login, isolation: str
) -> None:
    prepare(owner)
    executor = login("executor")
    (lease,) = claim(executor)
    begin(executor, isolation)
    take_snapshot(executor)
    engage(login("control"))
    executor.execute(
        "SELECT FROM orchestration.complete_outbox_attempt(%s)",
        (json.dumps([lease | {"state": "DISPATCHED"}]),),
    )
    executor.execute("COMMIT")
    found = refused(lambda: claim(executor))
    assert_invariant(found, "INV-KIL-001", "P7501", "kill_switches")


@pytest.mark.invariant("INV-KIL-001", "INV-KIL-002")
def test_a_switch_waits_for_an_idle_writer_and_no_later_writer_overtakes_it(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    idle, other, control = login("ingest"), login("ingest"), login("control")
    begin(idle, "READ COMMITTED")
    attest(idle)
    # The session's own lock_timeout does not end the wait, because engaging sets it to 0.
    control.execute("SET lock_timeout = '1ms'")
    engaging = background.submit(engage, control)
    await_blocked(owner, backend(control))
    following = background.submit(refused, lambda: attest(other, "bob"))
    assert await_blocked(owner, backend(other)) == [backend(control)]
    idle.execute("COMMIT")
    assert engaging.result(PATIENCE_SECONDS)[0] == 1
    found = following.result(PATIENCE_SECONDS)
    assert_invariant(found, "INV-KIL-001", "P7501", "kill_switches")


# Two switches.


@pytest.mark.invariant("INV-KIL-001")
@each_isolation
def test_sixteen_events_at_once_are_numbered_in_the_order_in_which_they_count(
    owner: Connect, login: Login, isolation: str
) -> None:
    def engaging(number: int) -> Callable[[threading.Barrier], int]:
        connection = login("control")

        def work(barrier: threading.Barrier) -> int:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                event_no, _ = engage(connection, "RAIL", f"rail {number}")
                connection.execute("COMMIT")
            return int(event_no)

        return work

    results = together([engaging(number) for number in range(16)])
    made = sorted(one for one in results if not isinstance(one, psycopg.Error))
    if isolation == "READ COMMITTED":
        assert made == list(range(1, 17))
    else:
        # All snapshots are older than the first event.
        assert made == [1]
        assert errors_of(results) == ["40001"] * 15
    stored = owner.execute(
        "SELECT event_no FROM orchestration.kill_switches ORDER BY occurred_at"
    ).fetchall()
    assert stored == [(number,) for number in made]


@pytest.mark.invariant("INV-KIL-001", "INV-API-002")
@each_isolation
def test_of_releases_at_once_one_releases(owner: Connect, login: Login, isolation: str) -> None:
    engage(owner)

    def releasing(connection: Connect) -> Callable[[threading.Barrier], None]:
        def work(barrier: threading.Barrier) -> None:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                release(connection)
                connection.execute("COMMIT")

        return work

    results = together([releasing(login("control")) for _ in range(8)])
    late = "P0002" if isolation == "READ COMMITTED" else "40001"
    assert errors_of(results) == [late] * 7
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switches") == 2
