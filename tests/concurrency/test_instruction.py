"""Instructions under concurrency: a key has one instruction, and a transition happens once. No
instruction is authorized after a change that forbids it, and none ends while an item is open."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

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
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    authorize_instructions,
    await_blocked,
    backend,
    digest,
    instruction_id,
    scalar,
)

pytestmark = pytest.mark.instructed

WRITERS = 8
EACH = 100
CREDENTIAL = digest("credential")

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
each_outcome = pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])

Row = tuple[Any, ...]
P = instruction_id("p", 0)
"""An authorized instruction, at version 2."""


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    for verify in ("verify_instructions", "verify_outbox"):
        assert owner.execute(f"SELECT * FROM orchestration.{verify}()").fetchall() == []


# What the services do, by raw SQL.


def attest(owner: Connect, **fields: str) -> UUID:
    asked = {
        "caller_identity": "alice",
        "idempotency_key": "k",
        "payload_hash": digest("k"),
        "policy_version_id": "instructions",
    }
    made = scalar(
        owner,
        "SELECT id FROM orchestration.append_attestations(%s)",
        (json.dumps([asked | fields]),),
    )
    assert isinstance(made, UUID)
    return made


def asked(attestation_id: UUID, key: str, participant_id: str = "p") -> dict[str, Any]:
    return {
        "participant_id": participant_id,
        "idempotency_key": key,
        "instruction_type": "pain.001",
        "end_to_end_id": key,
        "amount_minor": 100,
        "currency": "EUR",
        "debtor_account": "debtor",
        "creditor_account": "creditor",
        "payload": {"key": key},
        "attestation_id": str(attestation_id),
        "policy_version_id": "instructions",
    }


def receive(connection: Connect, entries: Sequence[dict[str, Any]]) -> list[Row]:
    return connection.execute(
        "SELECT id, state, version FROM orchestration.receive_instruction(p_instructions => %s)",
        (json.dumps(entries),),
    ).fetchall()


def transition(connection: Connect, call: str, id: UUID, version: int) -> Row:
    row = connection.execute(
        f"SELECT state, version FROM orchestration.{call}", {"id": id, "version": version}
    ).fetchone()
    assert row is not None
    return row


def authorize(connection: Connect, id: UUID, version: int = 1) -> Row:
    return transition(connection, "authorize_instruction(%(id)s, %(version)s)", id, version)


def start(connection: Connect, id: UUID) -> Row:
    return transition(connection, "start_execution(%(id)s, %(version)s)", id, 2)


def complete(connection: Connect, id: UUID = P) -> Row:
    return transition(connection, "complete_instruction(%(id)s, %(version)s)", id, 3)


def fail(connection: Connect, id: UUID = P) -> Row:
    return transition(connection, "fail_instruction(%(id)s, %(version)s, 'test')", id, 3)


ENDS: dict[str, Callable[..., Row]] = {"COMPLETED": complete, "FAILED": fail}

each_end = pytest.mark.parametrize("ended", ENDS)


def enqueue(connection: Connect, key: str, id: UUID = P, participant_id: str = "p") -> UUID:
    made = scalar(
        connection,
        "SELECT outbox_id FROM orchestration.enqueue_payment_outbox(p_items => %s)",
        (
            json.dumps(
                [
                    {
                        "instruction_id": str(id),
                        "participant_id": participant_id,
                        "idempotency_key": key,
                        "rail_type": "SEPA",
                        "payload": {},
                    }
                ]
            ),
        ),
    )
    assert isinstance(made, UUID)
    return made


def claim(connection: Connect) -> dict[str, str]:
    row = connection.execute(
        "SELECT outbox_id::text, lease_token::text FROM orchestration.claim_outbox_batch("
        "p_worker_id => 'w', p_batch_size => 1, p_lease => interval '1 hour')"
    ).fetchone()
    assert row is not None
    return {"outbox_id": row[0], "lease_token": row[1], "worker_id": "w"}


COMPLETIONS: dict[str, dict[str, str]] = {
    "DISPATCHED": {"state": "DISPATCHED"},
    "REJECTED": {"state": "FAILED", "outcome": "REJECTED"},
    "UNKNOWN": {"state": "FAILED", "outcome": "UNKNOWN"},
}


def close(connection: Connect, lease: dict[str, str], outcome: str) -> None:
    connection.execute(
        "SELECT FROM orchestration.complete_outbox_attempt(p_completions => %s,"
        " p_partial => false)",
        (json.dumps([lease | COMPLETIONS[outcome]]),),
    )


def finish(connection: Connect, outcome: str, key: str, **of: Any) -> UUID:
    """Create an item that ends with this outcome."""
    made = enqueue(connection, key, **of)
    close(connection, claim(connection), outcome)
    return made


def execute(worker: Connect, ended: str, id: UUID = P, participant_id: str = "p") -> None:
    """Start the execution, and create the items that this end of the instruction requires."""
    start(worker, id)
    outcome = "DISPATCHED" if ended == "COMPLETED" else "REJECTED"
    finish(worker, outcome, "before", id=id, participant_id=participant_id)


def stands(owner: Connect, id: UUID = P) -> tuple[str, int]:
    """Return the state of the instruction, and the number of its pending items."""
    row = owner.execute(
        "SELECT i.state, (SELECT count(*) FROM orchestration.payment_outbox_pending p"
        " WHERE p.instruction_id = i.id) FROM orchestration.instructions i WHERE i.id = %s",
        (id,),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def open_at(isolation: str, *connections: Connect) -> None:
    """Begin a transaction on each connection, and take its snapshot."""
    for connection in connections:
        begin(connection, isolation)
        take_snapshot(connection)


def in_transaction(
    connection: Connect, isolation: str, act: Callable[[], Any]
) -> Callable[[threading.Barrier], Any]:
    """Run one transaction. Its snapshot is taken before any other transaction acts."""

    def work(barrier: threading.Barrier) -> Any:
        with connection.transaction():
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            take_snapshot(connection)
            barrier.wait()
            return act()

    return work


def persist(connection: Connect, isolation: str, act: Callable[[], Any]) -> Any:
    """Run `act` in a transaction, and repeat it after each serialization failure. Other errors are
    raised."""
    while True:
        try:
            with connection.transaction():
                connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                return act()
        except psycopg.errors.SerializationFailure:
            continue


def accepted(results: Sequence[Any]) -> list[Any]:
    return [one for one in results if not isinstance(one, psycopg.Error)]


def settle(connection: Connect, waiting: Future[Any]) -> Refusal | None:
    """End the transaction of a call that has waited. Return its error, or None if it is
    committed."""
    error = waiting.exception(PATIENCE_SECONDS)
    connection.execute("COMMIT" if error is None else "ROLLBACK")
    if error is None:
        return None
    assert isinstance(error, psycopg.Error), error
    return Refusal.of(error)


def assert_forbidden(found: Refusal | None, isolation: str) -> None:
    """The error is P7404, or 40001 if an older snapshot cannot see the reason."""
    assert found is not None
    if isolation != "READ COMMITTED" and found.sqlstate == "40001":
        return
    assert_invariant(found, "INV-INS-006", "P7404", "instructions")


# One key, one instruction.


@pytest.mark.invariant("INV-INS-003", "INV-INS-004", "INV-INS-008")
@each_isolation
def test_of_sixteen_replays_of_one_key_at_once_one_is_received(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    entry = asked(attest(owner), "k")
    results = together(
        [
            in_transaction(connection, isolation, lambda c=connection: receive(c, [entry]))
            for connection in (login("ingest") for _ in range(16))
        ]
    )
    stored = owner.execute(
        "SELECT id, state, version FROM orchestration.instructions WHERE idempotency_key = 'k'"
    ).fetchall()
    assert len(stored) == 1
    assert accepted(results) == [stored] * len(accepted(results))
    if isolation == "READ COMMITTED":
        assert errors_of(results) == []
    else:
        assert errors_of(results) == ["40001"] * 15
    history = owner.execute(
        "SELECT version, to_state FROM orchestration.status_history WHERE instruction_id = %s",
        (stored[0][0],),
    ).fetchall()
    assert history == [(1, "RECEIVED")]


@pytest.mark.invariant("INV-INS-008")
@each_isolation
def test_of_two_contents_of_one_key_at_once_one_is_received(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    entry = asked(attest(owner), "k")
    results = together(
        [
            in_transaction(
                connection,
                isolation,
                lambda c=connection, n=n: receive(c, [entry | {"amount_minor": n}]),
            )
            for n, connection in ((n, login("ingest")) for n in (1, 2))
        ]
    )
    assert len(accepted(results)) == 1
    assert errors_of(results) == ["P7402" if isolation == "READ COMMITTED" else "40001"]


@pytest.mark.invariant("INV-INS-003", "INV-INS-008")
@each_outcome
def test_a_replay_waits_for_the_first_to_commit_or_not(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    end: str,
) -> None:
    entry = asked(attest(owner), "k")
    first, second = login("ingest"), login("ingest")
    begin(first, "READ COMMITTED")
    made = receive(first, [entry])
    waiting = background.submit(receive, second, [entry])
    assert await_blocked(owner, backend(second)) == [backend(first)]
    first.execute(end)
    assert (waiting.result(PATIENCE_SECONDS) == made) is (end == "COMMIT")


@pytest.mark.invariant("INV-INS-003", "INV-INS-008")
@each_isolation
def test_batches_that_share_keys_in_opposite_order_do_not_deadlock(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    attestation_id = attest(owner)
    keys, rounds = 60, 5
    shuffled = [*range(1, keys, 2), *range(0, keys, 2)]
    orders = [list(range(keys)), list(range(keys))[::-1], shuffled, shuffled[::-1]]

    def work_of(order: list[int]) -> Callable[[threading.Barrier], dict[str, UUID]]:
        connection = login("ingest")

        def work(barrier: threading.Barrier) -> dict[str, UUID]:
            found: dict[str, UUID] = {}
            for n in range(rounds):
                entries = [asked(attestation_id, f"{n}-{i}", f"participant {i % 3}") for i in order]
                barrier.wait()
                rows = persist(connection, isolation, lambda e=entries: receive(connection, e))
                found |= {
                    entry["idempotency_key"]: row[0]
                    for entry, row in zip(entries, rows, strict=True)
                }
            return found

        return work

    results = together([work_of(order) for order in orders])
    assert errors_of(results) == []
    assert all(one == results[0] for one in results)
    assert len(set(accepted(results)[0].values())) == keys * rounds


@pytest.mark.invariant("INV-INS-003")
def test_a_batch_waits_for_its_keys_in_their_order_and_not_in_its_own(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    a, b, c = (asked(attest(owner), key) for key in "abc")
    one, two, three = login("ingest"), login("ingest"), login("ingest")
    # While `b` is locked, both wait for it, and neither waits for a lock of the other.
    begin(three, "READ COMMITTED")
    receive(three, [b])
    begin(one, "READ COMMITTED")
    begin(two, "READ COMMITTED")
    waiting = background.submit(receive, one, [c, b, a])
    await_blocked(owner, backend(one))
    other = background.submit(receive, two, [c, a, b])
    assert await_blocked(owner, backend(two)) == [backend(one)]
    three.execute("COMMIT")
    rows = waiting.result(PATIENCE_SECONDS)
    one.execute("COMMIT")
    assert other.result(PATIENCE_SECONDS) == [rows[0], rows[2], rows[1]]
    two.execute("COMMIT")


# A transition happens once.


def receive_for_the_gates(owner: Connect, count: int) -> list[UUID]:
    """Received instructions of `gated`, attested with both credentials."""
    attestation_id = attest(owner, client_cert_fingerprint_sha256=CREDENTIAL, token_hash=CREDENTIAL)
    return [
        row[0]
        for row in receive(owner, [asked(attestation_id, f"{n}", "gated") for n in range(count)])
    ]


@pytest.mark.invariant("INV-INS-001", "INV-INS-004", "INV-INS-009")
@each_isolation
def test_of_two_authorizations_at_once_by_one_login_one_authorizes(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    for id in receive_for_the_gates(owner, 5):
        results = together(
            [
                in_transaction(connection, isolation, lambda c=connection, i=id: authorize(c, i))
                for connection in (login("executor"), login("executor"))
            ]
        )
        # In READ COMMITTED the second call is a repetition of the first.
        repeats = isolation == "READ COMMITTED"
        assert accepted(results) == [("AUTHORIZED", 2)] * (1 + repeats)
        assert errors_of(results) == ([] if repeats else ["40001"])
        history = owner.execute(
            "SELECT version, to_state FROM orchestration.status_history"
            " WHERE instruction_id = %s ORDER BY version",
            (id,),
        ).fetchall()
        assert history == [(1, "RECEIVED"), (2, "AUTHORIZED")]


@pytest.mark.invariant("INV-INS-009")
@each_outcome
@each_isolation
def test_a_transition_waits_for_the_one_in_flight_and_is_checked_after_it(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    end: str,
) -> None:
    one, two = login("executor"), login("executor")
    open_at(isolation, one, two)
    start(one, P)
    waiting = background.submit(start, two, P)
    assert await_blocked(owner, backend(two)) == [backend(one)]
    one.execute(end)
    found = settle(two, waiting)
    # In READ COMMITTED a repetition by the same login returns what is recorded.
    if end == "ROLLBACK" or isolation == "READ COMMITTED":
        assert found is None
    else:
        assert found is not None
        assert found.sqlstate == "40001"
    assert stands(owner) == ("EXECUTING", 0)


@pytest.mark.invariant("INV-INS-009")
@each_snapshot
def test_a_transition_from_an_older_snapshot_gets_40001(
    login: Callable[[str], Connect], isolation: str
) -> None:
    one, two = login("executor"), login("executor")
    open_at(isolation, one)
    start(two, P)
    assert refused(lambda: start(one, P)).sqlstate == "40001"
    one.execute("ROLLBACK")


# Authorization and the changes that forbid it.


def retire(control: Connect) -> None:
    """End the grace period of the version under which the instructions were received."""
    activate_policy(control, "v3")


def revoke_token(control: Connect) -> None:
    control.execute("SELECT orchestration.revoke_token(%s, 'keyCompromise')", (CREDENTIAL,))


def revoke_client_cert(control: Connect) -> None:
    control.execute("SELECT orchestration.revoke_client_cert(%s, 'keyCompromise')", (CREDENTIAL,))


CHANGES: dict[str, tuple[Callable[[Connect], None], str, str]] = {
    "rotation": (retire, "P7105", "policy_versions"),
    "revoked token": (revoke_token, "P7202", "revoked_tokens"),
    "revoked certificate": (revoke_client_cert, "P7202", "revoked_client_certs"),
}
BY_HAND = {
    "policy_versions": (
        "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE id = 'instructions'"
    ),
    "revoked_tokens": (
        "INSERT INTO orchestration.revoked_tokens (token_hash, reason_code)"
        f" VALUES ('{CREDENTIAL}', 'keyCompromise')"
    ),
    "revoked_client_certs": (
        "INSERT INTO orchestration.revoked_client_certs (cert_fingerprint_sha256, reason_code)"
        f" VALUES ('{CREDENTIAL}', 'keyCompromise')"
    ),
}
each_change = pytest.mark.parametrize("change", CHANGES)

LATE = """
SELECT count(*) FILTER (WHERE pg_xact_commit_timestamp(h.xact_id::text::xid)
                              > pg_xact_commit_timestamp(c.xmin)),
       count(*)
FROM orchestration.status_history h, orchestration.{} c
WHERE h.participant_id = 'gated' AND h.to_state = 'AUTHORIZED'
  AND to_jsonb(c) ->> 'id' IS NOT DISTINCT FROM %s
"""


def late(superuser: Connect, change: str) -> Row:
    """Return how many instructions were authorized after the change, and how many in total."""
    table = CHANGES[change][2]
    row = superuser.execute(
        LATE.format(table), ("instructions" if table == "policy_versions" else None,)
    ).fetchone()
    assert row is not None
    return row


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-010")
@each_change
@each_isolation
def test_a_change_gets_in_under_overlapping_authorizations_and_none_commits_after_it(
    owner: Connect,
    superuser: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    change: str,
) -> None:
    act, code, _ = CHANGES[change]
    ids = receive_for_the_gates(owner, WRITERS * EACH)
    control = login("control")
    activate_policy(control, "v2")
    control.execute("SET statement_timeout = '5s'")
    writers = OverlappingWriters(
        [login("executor") for _ in range(WRITERS)],
        isolation,
        lambda one, writer, number: authorize(one, ids[writer * EACH + number]),
    )
    with writers.at_work(background) as futures:
        act(control)
        refusals = [future.result(PATIENCE_SECONDS) for future in futures]

    after, authorized = late(superuser, change)
    assert after == 0
    assert authorized >= WRITERS
    # Every writer was rejected in the end. Writers with older snapshots got 40001 as well.
    assert all(code in codes for codes in refusals)
    allowed = {code} if isolation == "READ COMMITTED" else {code, "40001"}
    assert set().union(*refusals) <= allowed


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-010")
@each_change
def test_without_its_gate_a_change_overtakes_an_authorization_in_flight(
    owner: Connect, superuser: Connect, login: Callable[[str], Connect], change: str
) -> None:
    _, _, table = CHANGES[change]
    (id,) = receive_for_the_gates(owner, 1)
    activate_policy(owner, "v2")
    superuser.execute(f"DROP TRIGGER gate ON orchestration.{table}")
    executor = login("executor")
    begin(executor, "READ COMMITTED")
    authorize(executor, id)
    # By hand, because the functions also lock the gate themselves.
    superuser.execute(BY_HAND[table])
    executor.execute("COMMIT")
    assert late(superuser, change) == (1, 1)


@pytest.mark.invariant("INV-INS-010")
@each_change
@each_isolation
def test_a_change_waits_for_an_authorization_that_was_checked_before(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    change: str,
) -> None:
    act, code, table = CHANGES[change]
    first, second = receive_for_the_gates(owner, 2)
    activate_policy(owner, "v2")
    executor, control = login("executor"), login("control")
    begin(executor, isolation)
    authorize(executor, first)
    changing = background.submit(act, control)
    assert await_blocked(owner, backend(control)) == [backend(executor)]
    executor.execute("COMMIT")
    changing.result(PATIENCE_SECONDS)
    assert stands(owner, first) == ("AUTHORIZED", 0)
    found = refused(lambda: authorize(executor, second))
    assert_invariant(found, "INV-INS-010", code, table)


@pytest.mark.invariant("INV-INS-010")
@each_outcome
@each_change
@each_isolation
def test_an_authorization_waits_for_the_change_in_flight_and_is_checked_after_it(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    change: str,
    end: str,
) -> None:
    act, code, table = CHANGES[change]
    (id,) = receive_for_the_gates(owner, 1)
    activate_policy(owner, "v2")
    executor, control = login("executor"), login("control")
    open_at(isolation, executor)
    begin(control, "READ COMMITTED")
    act(control)
    waiting = background.submit(authorize, executor, id)
    assert await_blocked(owner, backend(executor)) == [backend(control)]
    control.execute(end)
    found = settle(executor, waiting)
    if end == "ROLLBACK":
        assert found is None
        assert stands(owner, id) == ("AUTHORIZED", 0)
        return
    assert found is not None
    if isolation == "READ COMMITTED":
        assert_invariant(found, "INV-INS-010", code, table)
    else:
        assert found.sqlstate == "40001"
        begin(executor, isolation)
        found = refused(lambda: authorize(executor, id))
        assert_invariant(found, "INV-INS-010", code, table)
        executor.execute("ROLLBACK")
    assert stands(owner, id) == ("RECEIVED", 0)


# Ends and enqueues.


@pytest.mark.invariant("INV-INS-006")
@each_outcome
@each_end
@each_isolation
def test_an_end_waits_for_an_enqueue_that_came_first(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    ended: str,
    end: str,
) -> None:
    service, executor = login("executor"), login("executor")
    execute(executor, ended)
    open_at(isolation, service, executor)
    enqueue(service, "k")
    waiting = background.submit(ENDS[ended], executor)
    assert await_blocked(owner, backend(executor)) == [backend(service)]
    service.execute(end)
    found = settle(executor, waiting)
    if end == "COMMIT":
        assert_forbidden(found, isolation)
        assert stands(owner) == ("EXECUTING", 1)
    else:
        assert found is None
        assert stands(owner) == (ended, 0)


@pytest.mark.invariant("INV-INS-006")
@each_outcome
@each_end
@each_isolation
def test_an_enqueue_waits_for_an_end_that_came_first(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    ended: str,
    end: str,
) -> None:
    service, executor = login("executor"), login("executor")
    execute(executor, ended)
    open_at(isolation, service, executor)
    ENDS[ended](executor)
    waiting = background.submit(enqueue, service, "k")
    assert await_blocked(owner, backend(service)) == [backend(executor)]
    executor.execute(end)
    found = settle(service, waiting)
    if end == "COMMIT":
        assert_forbidden(found, isolation)
        assert stands(owner) == (ended, 0)
    else:
        assert found is None
        assert stands(owner) == ("EXECUTING", 1)


@pytest.mark.invariant("INV-INS-006")
@each_end
@each_isolation
def test_of_an_end_and_an_enqueue_at_once_one_is_accepted(
    owner: Connect, login: Callable[[str], Connect], isolation: str, ended: str
) -> None:
    worker, service, executor = login("executor"), login("executor"), login("executor")
    ids = [instruction_id("p", number) for number in range(8)]
    for id in ids:
        execute(worker, ended, id)
    for id in ids:
        results = together(
            [
                in_transaction(service, isolation, lambda i=id: enqueue(service, "k", i)),
                in_transaction(executor, isolation, lambda i=id: ENDS[ended](executor, i)),
            ]
        )
        assert len(accepted(results)) == 1
        assert set(errors_of(results)) <= {"P7404", "40001"}
        if isolation == "READ COMMITTED":
            assert errors_of(results) == ["P7404"]
        last = ("EXECUTING", 1) if isinstance(results[1], psycopg.Error) else (ended, 0)
        assert stands(owner, id) == last


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("outcome", ["DISPATCHED", "UNKNOWN", "REJECTED"])
@pytest.mark.parametrize("snapshot", ["before the enqueue", "before the claim", "after the claim"])
@pytest.mark.parametrize("participant", ["p", "new"], ids=["known", "without an item so far"])
@each_end
@each_isolation
def test_an_end_is_never_checked_in_a_snapshot_that_lacks_an_item_s_end(
    owner: Connect,
    login: Callable[[str], Connect],
    isolation: str,
    ended: str,
    participant: str,
    snapshot: str,
    outcome: str,
) -> None:
    id = instruction_id(participant, 0)
    late, worker = login("executor"), login("executor")
    if participant == "new":
        authorize_instructions(owner, [(id, participant)])
    else:
        finish(worker, "REJECTED", "another", id=instruction_id(participant, 1))
    start(worker, id)

    def look(now: str) -> None:
        if now == snapshot:
            open_at(isolation, late)

    look("before the enqueue")
    enqueue(worker, "k", id, participant)
    look("before the claim")
    lease = claim(worker)
    look("after the claim")
    close(worker, lease, outcome)
    right = (ended, outcome) in {("COMPLETED", "DISPATCHED"), ("FAILED", "REJECTED")}
    if isolation == "READ COMMITTED" and right:
        assert ENDS[ended](late, id)[0] == ended
        late.execute("COMMIT")
        assert stands(owner, id) == (ended, 0)
        return
    assert_forbidden(refused(lambda: ENDS[ended](late, id)), isolation)
    late.execute("ROLLBACK")
    assert stands(owner, id) == ("EXECUTING", 0)

    begin(late, isolation)
    if right:
        assert ENDS[ended](late, id)[0] == ended
    else:
        found = refused(lambda: ENDS[ended](late, id))
        assert_invariant(found, "INV-INS-006", "P7404", "instructions")
    late.execute("ROLLBACK")


@pytest.mark.invariant("INV-INS-006")
@each_outcome
@pytest.mark.parametrize("outcome", COMPLETIONS)
@each_end
@each_isolation
def test_an_end_waits_for_the_completion_of_the_last_item(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    ended: str,
    outcome: str,
    end: str,
) -> None:
    worker, executor = login("executor"), login("executor")
    start(worker, P)
    enqueue(worker, "k")
    lease = claim(worker)
    open_at(isolation, worker, executor)
    close(worker, lease, outcome)
    waiting = background.submit(ENDS[ended], executor)
    assert await_blocked(owner, backend(executor)) == [backend(worker)]
    worker.execute(end)
    found = settle(executor, waiting)
    right = (ended, outcome) in {("COMPLETED", "DISPATCHED"), ("FAILED", "REJECTED")}
    if end == "ROLLBACK":
        assert_forbidden(found, isolation)
        assert stands(owner) == ("EXECUTING", 1)
        return
    if isolation == "READ COMMITTED" and right:
        assert found is None
        assert stands(owner) == (ended, 0)
        return
    assert_forbidden(found, isolation)
    assert stands(owner) == ("EXECUTING", 0)
    # When it is repeated, the end agrees with the outcomes of the items.
    begin(executor, isolation)
    if right:
        assert ENDS[ended](executor)[0] == ended
    else:
        found = refused(lambda: ENDS[ended](executor))
        assert_invariant(found, "INV-INS-006", "P7404", "instructions")
    executor.execute("ROLLBACK")


@pytest.mark.invariant("INV-INS-006")
@each_end
@each_isolation
def test_the_last_item_and_its_instruction_end_in_one_transaction_of_any_isolation(
    owner: Connect, login: Callable[[str], Connect], isolation: str, ended: str
) -> None:
    worker = login("executor")
    start(worker, P)
    enqueue(worker, "k")
    lease = claim(worker)
    begin(worker, isolation)
    close(worker, lease, "DISPATCHED" if ended == "COMPLETED" else "REJECTED")
    ENDS[ended](worker)
    worker.execute("COMMIT")
    assert stands(owner) == (ended, 0)


# Ends and redrives.


def redrive(connection: Connect, outbox_id: UUID) -> UUID:
    made = scalar(
        connection,
        "SELECT outbox_id FROM orchestration.redrive_outbox_item(p_outbox_id => %s)",
        (outbox_id,),
    )
    assert isinstance(made, UUID)
    return made


@pytest.mark.invariant("INV-INS-006")
@each_outcome
@pytest.mark.parametrize("first", ["redrive", "end"])
@each_isolation
def test_a_failure_and_a_redrive_wait_for_each_other(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
    first: str,
    end: str,
) -> None:
    control, executor = login("control"), login("executor")
    start(executor, P)
    item = finish(executor, "REJECTED", "k")
    open_at(isolation, control, executor)
    if first == "redrive":
        redrive(control, item)
        waiting: Future[Any] = background.submit(fail, executor)
        late, early = executor, control
    else:
        fail(executor)
        waiting = background.submit(redrive, control, item)
        late, early = control, executor
    assert await_blocked(owner, backend(late)) == [backend(early)]
    early.execute(end)
    found = settle(late, waiting)
    redriven = (first == "redrive") is (end == "COMMIT")
    assert stands(owner) == (("EXECUTING", 1) if redriven else ("FAILED", 0))
    if end == "COMMIT":
        assert_forbidden(found, isolation)
    else:
        assert found is None


@pytest.mark.invariant("INV-INS-006", "INV-OUT-007")
@each_isolation
def test_a_failure_and_a_redrive_that_queue_for_one_participant_do_not_deadlock(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    service, control, executor = login("executor"), login("control"), login("executor")
    start(executor, P)
    item = finish(executor, "REJECTED", "k")
    # While the participant's row is locked, the redrive waits for it, and the failure waits after
    # it.
    begin(service, "READ COMMITTED")
    enqueue(service, "k", instruction_id("p", 1))
    open_at(isolation, control, executor)
    redriving = background.submit(redrive, control, item)
    assert await_blocked(owner, backend(control)) == [backend(service)]
    failing = background.submit(fail, executor)
    assert await_blocked(owner, backend(executor)) == [backend(control)]
    service.execute("ROLLBACK")
    assert settle(control, redriving) is None
    assert_forbidden(settle(executor, failing), isolation)
    assert stands(owner) == ("EXECUTING", 1)
