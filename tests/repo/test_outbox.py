"""OutboxRepository as the services use it: in the caller's transaction, as their roles."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import LeaseLost, OrchestrationError, Retry
from orchestration.records import (
    AttemptRecord,
    ClaimedItem,
    Completion,
    CompletionResult,
    NewOutboxItem,
    OutboxDepth,
    OutboxItemRecord,
)
from orchestration.repo import OutboxRepository
from orchestration.vocabulary import (
    AttemptState,
    CompletionState,
    ItemState,
    LateOutcome,
    Outcome,
)
from tests.support import Connect, new_instruction_id, replayed

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

MINUTE = timedelta(minutes=1)
UNSHOWN = {"db_user", "context", "replayed"}
"""The fields that the record of an item has and its status does not have."""
RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")

DISPATCHED = Completion(state=CompletionState.DISPATCHED, rail_reference="E2E-1", latency_ms=12)
RETRYABLE = Completion(state=CompletionState.RETRYABLE, error_code="TIMEOUT")
FAILED = Completion(state=CompletionState.FAILED, outcome=Outcome.UNKNOWN, error_code="AC04")
REJECTED = Completion(state=CompletionState.FAILED, outcome=Outcome.REJECTED, error_code="AC04")
NOT_SENT = Completion(state=CompletionState.FAILED, outcome=Outcome.NOT_SENT)


def new(key: str = "k", **changed: Any) -> NewOutboxItem:
    participant_id = changed.get("participant_id", "bank-a")
    values: dict[str, Any] = {
        "instruction_id": new_instruction_id(participant_id),
        "participant_id": participant_id,
        "idempotency_key": key,
        "rail_type": "SEPA",
        "payload": {"amount": 100},
    }
    return NewOutboxItem(**(values | changed))


class Worker:
    """A service that commits after each call."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outbox = OutboxRepository(session)

    def enqueue(self, *news: NewOutboxItem) -> list[OutboxItemRecord]:
        made = self.outbox.enqueue_many(news)
        self.session.commit()
        return [one.model_copy(update={"replayed": False}) for one in made]

    def claim(
        self, worker_id: str = "w", *, batch_size: int = 100, lease: timedelta = MINUTE
    ) -> list[ClaimedItem]:
        claimed = self.outbox.claim(worker_id, batch_size=batch_size, lease=lease)
        self.session.commit()
        return claimed

    def claim_one(self, worker_id: str = "w") -> ClaimedItem:
        (claimed,) = self.claim(worker_id)
        return claimed

    def complete(self, item: ClaimedItem, completion: Completion) -> CompletionResult:
        result = self.outbox.complete(item, completion)
        self.session.commit()
        return result

    def complete_many(self, *pairs: tuple[ClaimedItem, Completion]) -> list[CompletionResult]:
        results = self.outbox.complete_many(pairs)
        self.session.commit()
        return results

    def redrive(self, outbox_id: UUID) -> OutboxItemRecord:
        made = self.outbox.redrive(outbox_id)
        self.session.commit()
        return made.model_copy(update={"replayed": False})

    def ended(self, completion: Completion, **changed: Any) -> OutboxItemRecord:
        """An item that was DISPATCHED or FAILED in its first attempt."""
        (made,) = self.enqueue(new(**changed))
        self.complete(self.claim_one(), completion)
        return made

    def history(self, outbox_id: UUID) -> list[tuple[int, str]]:
        return [(one.attempt_no, one.state.value) for one in self.outbox.attempts(outbox_id)]


@pytest.fixture
def worker(session: Sessions) -> Worker:
    return Worker(session("executor"))


@pytest.fixture
def control(session: Sessions) -> Worker:
    return Worker(session("control"))


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT * FROM orchestration.verify_outbox()").fetchall() == []


def expire_leases(owner: Connect) -> None:
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second'"
        " WHERE lease_expires_at > clock_timestamp()"
    )


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that the engine sends."""
    sent: list[str] = []

    def note(
        _connection: Any, _cursor: Any, statement: str, _params: Any, _context: Any, _many: bool
    ) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def assert_lease_lost(error: LeaseLost | None, outbox_id: UUID, worker_id: str) -> None:
    assert error is not None
    assert type(error) is LeaseLost
    assert (error.sqlstate, error.invariant, error.constraint) == (
        "P7002",
        "INV-OUT-002",
        "INV-OUT-002",
    )
    assert (error.schema, error.table, error.column) == (
        "orchestration",
        "payment_outbox_pending",
        "lease_token",
    )
    assert error.detail == {"outbox_id": str(outbox_id), "worker_id": worker_id}
    assert error.hint
    assert error.retry is Retry.NEVER
    assert str(error).startswith("INV-OUT-002: ")


def assert_refused(
    error: OrchestrationError,
    *,
    sqlstate: str,
    invariant: str,
    table: str,
    column: str | None,
    retry: Retry = Retry.NEVER,
) -> None:
    assert (error.sqlstate, error.invariant, error.constraint) == (sqlstate, invariant, invariant)
    assert (error.schema, error.table, error.column) == ("orchestration", table, column)
    assert isinstance(error.detail, dict)
    assert error.hint
    assert error.retry is retry
    assert str(error).startswith(f"{invariant}: ")
    assert error.__cause__ is not None


# Enqueuing.


def test_an_item_is_returned_as_it_was_stored(session: Sessions) -> None:
    asked = new("k", max_attempts=3, context={"traceparent": "00-1-2-01"})
    made = OutboxRepository(session("executor")).enqueue(asked)
    assert made == OutboxItemRecord(
        outbox_id=made.outbox_id,
        instruction_id=asked.instruction_id,
        participant_id="bank-a",
        sequence_id=1,
        idempotency_key="k",
        redrive_no=0,
        redrive_of=None,
        rail_type="SEPA",
        payload_hash=made.payload_hash,
        max_attempts=3,
        context={"traceparent": "00-1-2-01"},
        created_at=made.created_at,
        db_user=made.db_user,
        replayed=False,
    )
    assert made.outbox_id.version == 7
    assert made.db_user.endswith("executor")
    assert made.created_at.tzinfo is not None


@pytest.fixture
def orders(superuser: Connect) -> None:
    """The table of a host service, in the same database."""
    superuser.execute("CREATE TABLE public.orders (id text PRIMARY KEY)")
    superuser.execute("GRANT SELECT, INSERT ON public.orders TO symphony_executor")


def place_order(session: Session, id: str) -> OutboxItemRecord:
    session.execute(text("INSERT INTO public.orders VALUES (:id)"), {"id": id})
    return OutboxRepository(session).enqueue(new(id))


@pytest.mark.usefixtures("orders")
def test_an_item_is_committed_with_the_caller_s_own_write(
    session: Sessions, worker: Worker
) -> None:
    host = session("executor")
    made = place_order(host, "order-1")
    assert worker.claim() == []
    host.commit()
    assert [one.outbox_id for one in worker.claim()] == [made.outbox_id]
    assert host.scalars(text("SELECT id FROM public.orders")).all() == ["order-1"]


@pytest.mark.invariant("INV-OUT-007")
@pytest.mark.usefixtures("orders")
def test_an_item_is_rolled_back_with_the_caller_s_own_write(
    session: Sessions, worker: Worker
) -> None:
    host = session("executor")
    first = place_order(host, "order-1")
    host.rollback()
    assert worker.outbox.get(first.outbox_id) is None
    with pytest.raises(errors.UniqueViolation):
        host.execute(text("INSERT INTO public.orders VALUES ('o'), ('o')"))
    host.rollback()
    assert place_order(host, "order-1").sequence_id == 1
    host.commit()
    assert len(worker.claim()) == 1


@pytest.mark.usefixtures("orders")
def test_a_refusal_in_a_savepoint_leaves_the_caller_s_write(session: Sessions) -> None:
    host = session("executor")
    outbox = OutboxRepository(host)
    asked = new()
    outbox.enqueue(asked)
    host.execute(text("INSERT INTO public.orders VALUES ('order-1')"))
    with pytest.raises(errors.IdempotencyConflict), host.begin_nested():
        outbox.enqueue(asked.model_copy(update={"rail_type": "SWIFT"}))
    host.commit()
    assert host.scalars(text("SELECT id FROM public.orders")).all() == ["order-1"]


@pytest.mark.invariant("INV-OUT-004")
@pytest.mark.parametrize("state", ["live", "leased", "retried", "dispatched", "failed"])
def test_a_replay_gives_the_same_item_whatever_became_of_it(worker: Worker, state: str) -> None:
    asked = new()
    (first,) = worker.enqueue(asked)
    if state != "live":
        claimed = worker.claim_one()
        completions = {"retried": RETRYABLE, "dispatched": DISPATCHED, "failed": FAILED}
        if state in completions:
            worker.complete(claimed, completions[state])
    for _ in range(3):
        assert worker.enqueue(asked) == [first]


@pytest.mark.invariant("INV-OUT-004", "INV-OUT-006")
def test_a_replay_gives_the_newest_redrive(worker: Worker, control: Worker) -> None:
    asked = new()
    (first,) = worker.enqueue(asked)
    worker.complete(worker.claim_one(), REJECTED)
    second = control.redrive(first.outbox_id)
    assert worker.enqueue(asked) == [second]
    worker.complete(worker.claim_one(), NOT_SENT)
    third = control.redrive(second.outbox_id)
    assert worker.enqueue(asked, asked) == [third, third]
    assert [one.redrive_no for one in (first, second, third)] == [0, 1, 2]


@pytest.mark.invariant("INV-OUT-004")
@pytest.mark.parametrize(
    "changed",
    [
        {"participant_id": "bank-b"},
        {"rail_type": "SWIFT"},
        {"payload": {"amount": 101}},
        {"payload": {"amount": 100.0}},
        {"payload": {"amount": "100"}},
        {"payload": {"amount": 100, "more": None}},
        {"payload": {}},
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [False, True], ids=["live", "finished"])
def test_a_key_with_other_content_is_a_conflict(
    worker: Worker, changed: dict[str, Any], finished: bool
) -> None:
    asked = new()
    (first,) = worker.enqueue(asked)
    if finished:
        worker.complete(worker.claim_one(), DISPATCHED)
    with pytest.raises(errors.IdempotencyConflict) as raised:
        worker.enqueue(new("another"), asked.model_copy(update=changed))
    assert_refused(
        raised.value,
        sqlstate="P7004",
        invariant="INV-OUT-004",
        table="payment_outbox_items",
        column="idempotency_key",
    )
    assert raised.value.detail == {
        "outbox_id": str(first.outbox_id),
        "instruction_id": str(asked.instruction_id),
        "idempotency_key": "k",
    }
    worker.session.rollback()
    # The new item of the batch was rolled back as well.
    assert worker.enqueue(asked) == [first]
    assert [one.sequence_id for one in worker.enqueue(new("next"))] == [2]


@pytest.mark.invariant("INV-OUT-004")
@pytest.mark.parametrize(
    "changed",
    [
        {"payload": {"b": [2, {"d": 4, "c": 3}], "a": 1}},
        {"due_at": datetime.now(UTC) + timedelta(days=1)},
        {"max_attempts": 1},
    ],
    ids=["the keys in another order", "another due_at", "another max_attempts"],
)
def test_what_is_not_content_does_not_make_a_conflict(
    worker: Worker, changed: dict[str, Any]
) -> None:
    asked = new(payload={"a": 1, "b": [2, {"c": 3, "d": 4}]})
    (first,) = worker.enqueue(asked)
    assert worker.enqueue(asked.model_copy(update=changed)) == [first]


def test_one_key_of_two_instructions_is_two_items(worker: Worker) -> None:
    one, two = worker.enqueue(new("k"), new("k"))
    assert one.outbox_id != two.outbox_id
    assert (one.sequence_id, two.sequence_id) == (1, 2)


@pytest.mark.invariant("INV-INS-005")
@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_an_item_of_an_instruction_that_is_not_its_participant_s_is_refused(
    worker: Worker, whose: str
) -> None:
    asked = new("k", instruction_id=uuid4() if whose == "nobody's" else new_instruction_id("p"))
    with pytest.raises(errors.ForeignKeyViolation) as raised:
        worker.enqueue(new("another"), asked)
    assert type(raised.value) is errors.ForeignKeyViolation
    assert_refused(
        raised.value,
        sqlstate="23503",
        invariant="INV-INS-005",
        table="instructions",
        column="id",
    )
    assert raised.value.detail == {
        "id": str(asked.instruction_id),
        "participant_id": "bank-a",
        "idempotency_key": "k",
    }
    worker.session.rollback()
    # The other item of the batch was rolled back as well.
    assert worker.claim() == []
    assert worker.enqueue(new("next"))[0].sequence_id == 1


def move(owner: Connect, instruction_id: UUID, *states: str) -> None:
    """Bring it through these states, as the owner."""
    for state in states:
        owner.execute(
            "UPDATE orchestration.instructions SET state = %s,"
            " reason = CASE %s WHEN 'FAILED' THEN 'test' END WHERE id = %s",
            (state, state, instruction_id),
        )


def receive(owner: Connect) -> UUID:
    """An instruction of bank-a that is not authorized."""
    received = uuid4()
    owner.execute(
        "INSERT INTO orchestration.instructions (id, participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        " SELECT %s, participant_id, 'received', instruction_type, end_to_end_id, amount_minor,"
        " currency, debtor_account, creditor_account, payload, attestation_id, policy_version_id"
        " FROM orchestration.instructions WHERE id = %s",
        (received, new_instruction_id()),
    )
    return received


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("state", ["RECEIVED", "COMPLETED", "FAILED"])
def test_an_item_of_an_instruction_that_is_not_open_is_refused(
    worker: Worker, owner: Connect, state: str
) -> None:
    asked = new("k")
    stored: list[OutboxItemRecord] = []
    if state == "RECEIVED":
        asked = new("k", instruction_id=receive(owner))
    elif state == "COMPLETED":
        stored = worker.enqueue(first := new("k0", instruction_id=asked.instruction_id))
        worker.complete(worker.claim_one(), DISPATCHED)
        move(owner, asked.instruction_id, "EXECUTING", "COMPLETED")
    else:
        move(owner, asked.instruction_id, "FAILED")
    with pytest.raises(errors.InstructionStateForbids) as raised:
        worker.enqueue(new("another"), asked)
    assert type(raised.value) is errors.InstructionStateForbids
    assert_refused(
        raised.value,
        sqlstate="P7404",
        invariant="INV-INS-006",
        table="instructions",
        column="state",
        retry=Retry.AFTER_RESOLUTION,
    )
    assert raised.value.detail == {
        "id": str(asked.instruction_id),
        "state": state,
        "participant_id": "bank-a",
        "idempotency_key": "k",
    }
    worker.session.rollback()
    assert worker.claim() == []
    assert worker.enqueue(new("next"))[0].sequence_id == len(stored) + 1
    if stored:
        # A replay returns what was stored, whatever the state of its instruction is.
        assert worker.enqueue(first) == stored


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("states", [(), ("EXECUTING",)], ids=["authorized", "executing"])
def test_an_item_of_an_instruction_that_is_open_is_stored(
    worker: Worker, owner: Connect, states: tuple[str, ...]
) -> None:
    asked = new()
    move(owner, asked.instruction_id, *states)
    assert [one.instruction_id for one in worker.enqueue(asked)] == [asked.instruction_id]


@pytest.mark.invariant("INV-INS-006")
def test_the_error_is_about_the_first_item_that_is_refused(worker: Worker, owner: Connect) -> None:
    received, stranger = receive(owner), uuid4()
    with pytest.raises(errors.InstructionStateForbids):
        worker.enqueue(new(instruction_id=received), new(instruction_id=stranger))
    worker.session.rollback()
    with pytest.raises(errors.ForeignKeyViolation):
        worker.enqueue(new(instruction_id=stranger), new(instruction_id=received))


@pytest.mark.invariant("INV-OUT-004")
def test_an_item_twice_in_a_batch_is_one_returned_twice(worker: Worker) -> None:
    a, b = new("a"), new("b")
    made = worker.enqueue(a, b, a, a, b)
    assert [one.idempotency_key for one in made] == ["a", "b", "a", "a", "b"]
    assert [one.sequence_id for one in made] == [1, 2, 1, 1, 2]
    assert len(worker.claim()) == 2


@pytest.mark.invariant("INV-OUT-004")
def test_a_key_twice_in_a_batch_with_other_content_is_a_conflict(worker: Worker) -> None:
    asked = new()
    with pytest.raises(errors.IdempotencyConflict):
        worker.enqueue(asked, asked.model_copy(update={"payload": {"amount": 1}}))
    worker.session.rollback()
    assert worker.claim() == []
    assert worker.enqueue(new("next"))[0].sequence_id == 1


@pytest.mark.invariant("INV-OUT-007")
def test_a_batch_is_returned_and_numbered_in_the_order_of_its_input(worker: Worker) -> None:
    (old,) = worker.enqueue(replayed := new("old"))
    participants = ("bank-b", "p", "q")
    news = [new(f"k{n:02}", participant_id=participants[n % 3]) for n in range(30, 0, -1)]
    made = worker.enqueue(*news[:10], replayed, *news[10:])
    assert made.pop(10) == old
    assert [one.idempotency_key for one in made] == [one.idempotency_key for one in news]
    for participant in participants:
        numbers = [one.sequence_id for one in made if one.participant_id == participant]
        assert numbers == list(range(1, 11))


@pytest.mark.invariant("INV-API-001")
def test_a_batch_holds_up_to_ten_thousand_items_in_one_round_trip_each(
    worker: Worker, engine: Callable[[str], Engine]
) -> None:
    news = [new(f"k{n}") for n in range(10_000)]
    with statements(engine("executor")) as sent:
        made = worker.outbox.enqueue_many(news)
        worker.session.commit()
        assert len(sent) == 1
        claimed = worker.outbox.claim("w", batch_size=10_000, lease=timedelta(hours=1))
        worker.session.commit()
        assert len(sent) == 2
        results = worker.outbox.complete_many((one, DISPATCHED) for one in reversed(claimed))
        worker.session.commit()
        assert len(sent) == 3
    assert [one.sequence_id for one in made] == list(range(1, 10_001))
    assert [one.idempotency_key for one in made] == [one.idempotency_key for one in news]
    assert {one.outbox_id for one in claimed} == {one.outbox_id for one in made}
    assert [one.outbox_id for one in results] == [one.outbox_id for one in reversed(claimed)]
    assert {one.state for one in results} == {AttemptState.DISPATCHED}
    assert worker.outbox.depth() == []


@pytest.mark.invariant("INV-API-001")
def test_a_batch_of_more_than_ten_thousand_is_refused(worker: Worker) -> None:
    item = new()
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.enqueue(*[item] * 10_001)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_items",
        column=None,
    )
    worker.session.rollback()
    worker.enqueue(item)
    claimed = worker.claim_one()
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.complete_many(*[(claimed, DISPATCHED)] * 10_001)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_attempts",
        column=None,
    )


def test_an_empty_batch_does_nothing(worker: Worker) -> None:
    assert worker.enqueue() == []
    assert worker.complete_many() == []


# Claiming.


def test_a_claimed_item_carries_its_payload_and_its_lease(worker: Worker) -> None:
    asked = new(payload={"amount": 100, "to": ["é", None]}, max_attempts=7)
    (made,) = worker.enqueue(asked)
    claimed = worker.claim_one("worker-1")
    assert claimed == ClaimedItem(
        outbox_id=made.outbox_id,
        instruction_id=asked.instruction_id,
        participant_id="bank-a",
        sequence_id=1,
        idempotency_key="k",
        redrive_no=0,
        rail_type="SEPA",
        payload={"amount": 100, "to": ["é", None]},
        payload_hash=made.payload_hash,
        attempt_no=1,
        max_attempts=7,
        worker_id="worker-1",
        lease_token=claimed.lease_token,
        lease_expires_at=claimed.claimed_at + MINUTE,
        claimed_at=claimed.claimed_at,
    )
    assert claimed.claimed_at > made.created_at


@pytest.mark.invariant("INV-OUT-005")
def test_a_claim_records_the_opening(worker: Worker) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one("worker-1")
    (opening,) = worker.outbox.attempts(claimed.outbox_id)
    assert opening == AttemptRecord(
        outbox_id=claimed.outbox_id,
        attempt_no=1,
        phase="OPEN",
        state=AttemptState.DISPATCHING,
        outcome=None,
        requested_state=None,
        requested_error_code=None,
        lease_token=claimed.lease_token,
        worker_id="worker-1",
        claimed_at=claimed.claimed_at,
        completed_at=None,
        rail_reference=None,
        rail_code=None,
        error_code=None,
        error_message=None,
        latency_ms=None,
        db_user=opening.db_user,
    )


def test_a_claim_that_is_rolled_back_took_nothing(worker: Worker) -> None:
    worker.enqueue(new())
    assert len(worker.outbox.claim("w", batch_size=1, lease=MINUTE)) == 1
    worker.session.rollback()
    claimed = worker.claim_one()
    assert (claimed.attempt_no, worker.history(claimed.outbox_id)) == (1, [(1, "DISPATCHING")])


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_takes_the_oldest_first_and_no_more_than_asked(worker: Worker) -> None:
    made = [worker.enqueue(new(f"k{n}"))[0].outbox_id for n in range(5)]
    assert [one.outbox_id for one in worker.claim(batch_size=2)] == made[:2]
    assert [one.outbox_id for one in worker.claim(batch_size=2)] == made[2:4]
    assert [one.outbox_id for one in worker.claim(batch_size=2)] == made[4:]
    assert worker.claim(batch_size=2) == []


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_never_returns_what_is_leased(worker: Worker, session: Sessions) -> None:
    worker.enqueue(new("a"), new("b"))
    assert len(worker.claim("w1", lease=timedelta(days=1))) == 2
    assert Worker(session("executor")).claim("w2") == []
    assert worker.claim("w1") == []


@pytest.mark.invariant("INV-OUT-008")
def test_an_item_that_is_due_later_is_not_claimed(worker: Worker, owner: Connect) -> None:
    now = owner.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    past, later = now[0] - MINUTE, now[0] + MINUTE
    due, _ = worker.enqueue(new("due", due_at=past), new("later", due_at=later))
    assert [one.outbox_id for one in worker.claim()] == [due.outbox_id]
    status = worker.outbox.get(_.outbox_id)
    assert status is not None
    assert (status.state, status.next_attempt_at) == (ItemState.PENDING, later)
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending SET next_attempt_at = clock_timestamp()"
        " WHERE lease_token IS NULL"
    )
    assert len(worker.claim()) == 1


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    ("batch_size", "lease", "worker_id"),
    [
        (0, MINUTE, "w"),
        (-1, MINUTE, "w"),
        (10_001, MINUTE, "w"),
        (2**31, MINUTE, "w"),
        (1, timedelta(seconds=0.5), "w"),
        (1, timedelta(0), "w"),
        (1, -MINUTE, "w"),
        (1, timedelta(days=2), "w"),
        (1, timedelta(days=1, microseconds=1), "w"),
        (1, timedelta(days=10**8), "w"),
        (1, MINUTE, ""),
    ],
)
def test_a_claim_out_of_bounds_is_refused(
    worker: Worker, batch_size: int, lease: timedelta, worker_id: str
) -> None:
    worker.enqueue(new())
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.claim(worker_id, batch_size=batch_size, lease=lease)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_pending",
        column=None,
    )
    worker.session.rollback()
    assert len(worker.claim()) == 1


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("max_bytes", [0, -1, 2**30 + 1])
def test_a_claim_s_budget_is_a_byte_to_a_gibibyte(worker: Worker, max_bytes: int) -> None:
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.outbox.claim("w", batch_size=1, lease=MINUTE, max_bytes=max_bytes)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_pending",
        column=None,
    )


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_hands_out_payloads_up_to_its_budget(worker: Worker) -> None:
    made = worker.enqueue(*(new(str(n), payload={"memo": "x" * 600_000}) for n in range(30)))
    # 16 MiB by default for any batch size: 27 payloads of 600 kB and a little.
    claimed = worker.claim(batch_size=30)
    assert [one.outbox_id for one in claimed] == [one.outbox_id for one in made[:27]]
    status = worker.outbox.get(made[27].outbox_id)
    assert status is not None
    assert (status.state, status.attempt_count) == (ItemState.PENDING, 0)
    assert len(worker.outbox.claim("w", batch_size=30, lease=MINUTE, max_bytes=1)) == 1
    assert len(worker.outbox.claim("w", batch_size=30, lease=MINUTE, max_bytes=2**30)) == 2


@pytest.mark.invariant("INV-OUT-008")
def test_the_budget_of_a_claim_counts_contexts_too(worker: Worker) -> None:
    worker.enqueue(*(new(str(n), payload={}, context={"note": "x" * 900}) for n in range(3)))
    assert len(worker.outbox.claim("w", batch_size=3, lease=MINUTE, max_bytes=2_000)) == 2


@pytest.mark.parametrize("lease", [timedelta(seconds=1), timedelta(days=1)])
def test_a_lease_lasts_from_a_second_to_a_day(worker: Worker, lease: timedelta) -> None:
    worker.enqueue(new())
    (claimed,) = worker.claim(lease=lease, batch_size=10_000)
    assert claimed.lease_expires_at - claimed.claimed_at == lease


@pytest.mark.invariant("INV-OUT-002")
def test_what_a_worker_holds_is_what_its_lost_claims_returned(
    worker: Worker, owner: Connect
) -> None:
    worker.enqueue(*(new(str(n)) for n in range(6)))
    first = worker.claim("w", batch_size=2, lease=timedelta(days=1))
    worker.claim("other", batch_size=1)
    second = worker.claim("w", batch_size=2)
    assert worker.outbox.held("w") == [*first, *second]
    assert worker.outbox.held("nobody") == []
    # With these tokens the worker continues.
    held, renewed, expired, retried = worker.outbox.held("w")
    worker.complete(held, DISPATCHED)
    renewed = worker.outbox.renew(renewed, lease=timedelta(hours=1))
    worker.complete(retried, RETRYABLE)
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second' WHERE outbox_id = %s",
        (expired.outbox_id,),
    )
    assert worker.outbox.held("w") == [renewed]


@pytest.mark.invariant("INV-OUT-008")
def test_what_a_worker_holds_is_found_where_leases_were_set_apart(
    worker: Worker, owner: Connect
) -> None:
    worker.enqueue(new("held"), new("later", due_at=datetime.now(UTC) + timedelta(days=300)))
    (held,) = worker.claim("w", lease=timedelta(days=1))
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending SET next_attempt_at = lease_expires_at"
        " WHERE lease_token IS NOT NULL"
    )
    assert worker.outbox.held("w") == [held]
    renewed = worker.outbox.renew(held, lease=MINUTE)
    worker.session.commit()
    assert worker.outbox.held("w") == [renewed]
    expire_leases(owner)
    assert worker.claim_one("w2").outbox_id == held.outbox_id


# Completing.


@pytest.mark.parametrize(
    ("completion", "state", "outcome"),
    [
        (DISPATCHED, ItemState.DISPATCHED, None),
        (FAILED, ItemState.FAILED, Outcome.UNKNOWN),
        (REJECTED, ItemState.FAILED, Outcome.REJECTED),
        (NOT_SENT, ItemState.FAILED, Outcome.NOT_SENT),
    ],
    ids=["dispatched", "failed", "rejected", "not sent"],
)
@pytest.mark.invariant("INV-OUT-003", "INV-OUT-005")
def test_a_terminal_completion_ends_the_item(
    worker: Worker, completion: Completion, state: ItemState, outcome: Outcome | None
) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one()
    result = worker.complete(claimed, completion)
    assert result == CompletionResult(
        outbox_id=made.outbox_id, state=AttemptState(completion.state), error=None
    )
    _, closing = worker.outbox.attempts(made.outbox_id)
    assert (closing.phase, closing.state, closing.outcome) == ("CLOSE", state.value, outcome)
    assert closing.requested_state is completion.state
    assert closing.requested_error_code == closing.error_code == completion.error_code
    assert closing.rail_reference == completion.rail_reference
    assert closing.latency_ms == completion.latency_ms
    assert (closing.lease_token, closing.worker_id) == (claimed.lease_token, "w")
    assert closing.claimed_at == claimed.claimed_at
    assert closing.completed_at is not None
    assert closing.completed_at > claimed.claimed_at
    status = worker.outbox.get(made.outbox_id)
    assert status is not None
    assert (status.state, status.outcome, status.attempt_count) == (state, outcome, 1)
    assert status.completed_at == closing.completed_at
    assert (status.next_attempt_at, status.claimed_by, status.lease_expires_at) == (None,) * 3
    assert worker.claim() == []


def test_everything_that_a_worker_tells_is_recorded(worker: Worker) -> None:
    (made,) = worker.enqueue(new())
    told = {
        "rail_reference": "REF",
        "rail_code": "AM05",
        "error_code": "DUPLICATE",
        "error_message": "čeština\n'\"\\{} 😀",
        "latency_ms": 2**31 - 1,
    }
    completion = Completion(state=CompletionState.FAILED, outcome=Outcome.REJECTED, **told)
    worker.complete(worker.claim_one(), completion)
    _, closing = worker.outbox.attempts(made.outbox_id)
    assert closing.model_dump(include=set(told)) == told


def test_an_item_that_is_to_be_retried_is_due_at_once(worker: Worker) -> None:
    (made,) = worker.enqueue(new())
    assert worker.complete(worker.claim_one(), RETRYABLE).state is AttemptState.RETRYABLE
    status = worker.outbox.get(made.outbox_id)
    assert status is not None
    assert (status.state, status.attempt_count) == (ItemState.PENDING, 1)
    second = worker.claim_one("w2")
    assert (second.outbox_id, second.attempt_no) == (made.outbox_id, 2)
    worker.complete(second, DISPATCHED)
    assert worker.history(made.outbox_id) == [
        (1, "DISPATCHING"),
        (1, "RETRYABLE"),
        (2, "DISPATCHING"),
        (2, "DISPATCHED"),
    ]


@pytest.mark.parametrize(
    "retry_in",
    [
        timedelta(0),
        timedelta(microseconds=1),
        timedelta(hours=1, microseconds=7),
        timedelta(days=400),
        timedelta(days=36_000),
    ],
    ids=str,
)
def test_a_retry_waits_by_the_database_s_clock(worker: Worker, retry_in: timedelta) -> None:
    (made,) = worker.enqueue(new())
    completion = Completion(state=CompletionState.RETRYABLE, retry_in=retry_in)
    worker.complete(worker.claim_one(), completion)
    _, closing = worker.outbox.attempts(made.outbox_id)
    status = worker.outbox.get(made.outbox_id)
    assert closing.completed_at is not None
    assert status is not None
    assert status.next_attempt_at == closing.completed_at + retry_in
    assert len(worker.claim()) == (1 if retry_in < MINUTE else 0)


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("retry_in", [timedelta(days=36_600), timedelta(days=10**8)], ids=str)
def test_a_retry_in_more_than_a_hundred_years_is_refused(
    worker: Worker, retry_in: timedelta
) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.complete(claimed, RETRYABLE.model_copy(update={"retry_in": retry_in}))
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_attempts",
        column=None,
    )


@pytest.mark.invariant("INV-OUT-003")
@pytest.mark.parametrize(
    ("before", "told", "outcome"),
    [
        (None, None, Outcome.UNKNOWN),
        # NOT_SENT is about this attempt only. An earlier attempt may have sent the payment.
        (None, Outcome.NOT_SENT, Outcome.UNKNOWN),
        (Outcome.NOT_SENT, Outcome.NOT_SENT, Outcome.NOT_SENT),
        # The rail identifies the payment by its key, and has rejected it.
        (None, Outcome.REJECTED, Outcome.REJECTED),
    ],
)
def test_a_retry_at_the_ceiling_fails_and_says_so(
    worker: Worker, before: Outcome | None, told: Outcome | None, outcome: Outcome
) -> None:
    (made,) = worker.enqueue(new(max_attempts=2))
    worker.complete(worker.claim_one(), RETRYABLE.model_copy(update={"outcome": before}))
    last = worker.claim_one()
    completion = Completion(state=CompletionState.RETRYABLE, error_code="TIMEOUT", outcome=told)
    result = worker.complete(last, completion)
    assert result.state is AttemptState.FAILED
    closing = worker.outbox.attempts(made.outbox_id)[-1]
    assert (closing.attempt_no, closing.state, closing.outcome) == (2, "FAILED", outcome)
    assert closing.error_code == "RETRY_CEILING_EXCEEDED"
    assert (closing.requested_state, closing.requested_error_code) == ("RETRYABLE", "TIMEOUT")
    status = worker.outbox.get(made.outbox_id)
    assert status is not None
    assert (status.state, status.outcome) == (ItemState.FAILED, outcome)
    assert status.error_code == "RETRY_CEILING_EXCEEDED"
    assert worker.complete(last, completion) == replayed(result)
    assert worker.complete_many((last, completion)) == [replayed(result)]
    assert len(worker.history(made.outbox_id)) == 4


def test_a_retry_below_the_ceiling_keeps_its_outcome(worker: Worker) -> None:
    (made,) = worker.enqueue(new())
    completion = Completion(state=CompletionState.RETRYABLE, outcome=Outcome.NOT_SENT)
    worker.complete(worker.claim_one(), completion)
    assert worker.outbox.attempts(made.outbox_id)[-1].outcome is Outcome.NOT_SENT


@pytest.mark.invariant("INV-OUT-002")
@pytest.mark.parametrize(
    "completion", [DISPATCHED, RETRYABLE, FAILED, REJECTED], ids=lambda one: one.state.value
)
def test_the_same_completion_again_gives_what_was_recorded(
    worker: Worker, completion: Completion
) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one()
    first = worker.complete(claimed, completion)
    again = completion.model_copy(update={"latency_ms": 99, "error_message": "told otherwise"})
    assert not first.replayed
    assert worker.complete(claimed, again) == replayed(first)
    assert worker.complete_many((claimed, again)) == [replayed(first)]
    assert len(worker.outbox.attempts(made.outbox_id)) == 2


@pytest.mark.invariant("INV-OUT-002")
def test_a_retry_repeated_after_the_next_attempt_returns_what_was_recorded(worker: Worker) -> None:
    worker.enqueue(new())
    first = worker.claim_one("w1")
    result = worker.complete(first, RETRYABLE)
    second = worker.claim_one("w2")
    assert worker.complete(first, RETRYABLE) == replayed(result)
    worker.complete(second, DISPATCHED)
    assert worker.complete(first, RETRYABLE) == replayed(result)


@pytest.mark.invariant("INV-OUT-002")
@pytest.mark.parametrize(
    "other",
    [
        FAILED,
        RETRYABLE,
        DISPATCHED.model_copy(update={"rail_reference": "E2E-2"}),
        DISPATCHED.model_copy(update={"rail_reference": None}),
        DISPATCHED.model_copy(update={"error_code": "X"}),
    ],
    ids=["FAILED", "RETRYABLE", "another reference", "no reference", "an error code"],
)
def test_another_completion_under_the_same_token_is_too_late(
    worker: Worker, other: Completion
) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one()
    worker.complete(claimed, DISPATCHED)
    with pytest.raises(LeaseLost) as raised:
        worker.complete(claimed, other)
    assert_lease_lost(raised.value, made.outbox_id, "w")
    worker.session.rollback()
    assert worker.history(made.outbox_id)[-1] == (1, "DISPATCHED")


@pytest.mark.invariant("INV-OUT-002")
@pytest.mark.parametrize("then", ["expired", "repaired", "claimed by another", "ended by another"])
def test_a_worker_whose_lease_has_expired_completes_and_renews_nothing(
    worker: Worker, session: Sessions, owner: Connect, then: str
) -> None:
    (made,) = worker.enqueue(new())
    stale = worker.claim_one("w1")
    expire_leases(owner)
    other = Worker(session("executor"))
    if then == "repaired":
        assert len(other.outbox.repair_expired(limit=10)) == 1
        other.session.commit()
    elif then != "expired":
        claimed = other.claim_one("w2")
        if then == "ended by another":
            other.complete(claimed, FAILED)
    before = worker.outbox.attempts(made.outbox_id)
    for act in (
        lambda: worker.complete(stale, DISPATCHED),
        lambda: worker.outbox.renew(stale, lease=MINUTE),
    ):
        with pytest.raises(LeaseLost) as raised:
            act()
        assert_lease_lost(raised.value, made.outbox_id, "w1")
        assert raised.value.__cause__ is not None
        worker.session.rollback()
    (result,) = worker.complete_many((stale, DISPATCHED))
    assert (result.outbox_id, result.state) == (made.outbox_id, None)
    assert_lease_lost(result.error, made.outbox_id, "w1")
    assert result.error is not None
    assert result.error.__cause__ is None
    assert worker.outbox.attempts(made.outbox_id) == before


@pytest.mark.invariant("INV-OUT-002")
@pytest.mark.parametrize(
    "changed",
    [{"worker_id": "thief"}, {"lease_token": uuid4()}],
    ids=["another worker", "another token"],
)
def test_a_lease_is_its_worker_s_and_its_token_s(worker: Worker, changed: dict[str, Any]) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one("w")
    forged = claimed.model_copy(update=changed)
    with pytest.raises(LeaseLost) as raised:
        worker.complete(forged, DISPATCHED)
    assert_lease_lost(raised.value, made.outbox_id, forged.worker_id)
    worker.session.rollback()
    with pytest.raises(LeaseLost) as raised:
        worker.outbox.renew(forged, lease=MINUTE)
    assert_lease_lost(raised.value, made.outbox_id, forged.worker_id)
    worker.session.rollback()
    worker.complete(claimed, DISPATCHED)
    # A call with a foreign token does not return what was recorded either.
    with pytest.raises(LeaseLost):
        worker.complete(forged, DISPATCHED)
    worker.session.rollback()


@pytest.mark.invariant("INV-OUT-002")
def test_one_lost_lease_undoes_none_of_the_others(worker: Worker, owner: Connect) -> None:
    worker.enqueue(*(new(f"k{n}") for n in range(3)))
    stale = worker.claim("w1")
    expire_leases(owner)
    worker.claim("w2")
    worker.enqueue(*(new(f"k{n}") for n in range(3, 9)))
    fresh = worker.claim("w1")
    completions = (DISPATCHED, RETRYABLE, REJECTED)
    pairs = [
        pair
        for n in range(3)
        for pair in (
            (fresh[2 * n], completions[n]),
            (stale[n], DISPATCHED),
            (fresh[2 * n + 1], completions[n]),
        )
    ]
    results = worker.complete_many(*pairs)
    assert [one.outbox_id for one in results] == [item.outbox_id for item, _ in pairs]
    assert [one.state for one in results] == [
        state
        for completion in completions
        for state in (AttemptState(completion.state), None, AttemptState(completion.state))
    ]
    for (item, _), result in zip(pairs, results, strict=True):
        if result.state is None:
            assert_lease_lost(result.error, item.outbox_id, "w1")
        else:
            assert result.error is None
            assert worker.history(item.outbox_id)[-1] == (1, result.state.value)
    with pytest.raises(LeaseLost):
        worker.complete(stale[0], DISPATCHED)
    worker.session.rollback()


@pytest.mark.invariant("INV-OUT-002")
def test_of_an_item_twice_in_a_batch_the_first_counts(worker: Worker) -> None:
    worker.enqueue(new("a"), new("b"), new("c"))
    a, b, c = worker.claim()
    retry = Completion(state=CompletionState.RETRYABLE, retry_in=timedelta(hours=1))
    results = worker.complete_many(
        (a, DISPATCHED), (b, retry), (c, REJECTED), (a, FAILED), (b, RETRYABLE), (c, REJECTED)
    )
    assert [one.state for one in results] == [
        "DISPATCHED",
        "RETRYABLE",
        "FAILED",
        None,
        None,
        "FAILED",
    ]
    assert_lease_lost(results[3].error, a.outbox_id, "w")
    assert_lease_lost(results[4].error, b.outbox_id, "w")
    assert worker.claim() == []
    assert [len(worker.outbox.attempts(one.outbox_id)) for one in (a, b, c)] == [2, 2, 2]


@pytest.mark.invariant("INV-OUT-002")
def test_of_two_retries_of_an_item_in_a_batch_the_first_delay_counts(worker: Worker) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    late = RETRYABLE.model_copy(update={"retry_in": timedelta(hours=1)})
    results = worker.complete_many((claimed, late), (claimed, RETRYABLE))
    assert [one.state for one in results] == ["RETRYABLE", "RETRYABLE"]
    assert worker.claim() == []


@pytest.mark.invariant("INV-API-002")
def test_an_unknown_item_is_not_found(worker: Worker, control: Worker) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    unknown = claimed.model_copy(update={"outbox_id": uuid4()})
    acts: list[Callable[[], object]] = [
        lambda: worker.complete(unknown, DISPATCHED),
        lambda: worker.complete_many((claimed, DISPATCHED), (unknown, DISPATCHED)),
        lambda: worker.outbox.renew(unknown, lease=MINUTE),
        lambda: control.redrive(unknown.outbox_id),
    ]
    for act in acts:
        with pytest.raises(errors.NotFound) as raised:
            act()
        assert_refused(
            raised.value,
            sqlstate="P0002",
            invariant="INV-API-002",
            table="payment_outbox_items",
            column="outbox_id",
        )
        assert raised.value.detail == {"outbox_id": str(unknown.outbox_id)}
        worker.session.rollback()
        control.session.rollback()
    # The whole batch was rolled back.
    assert worker.history(claimed.outbox_id) == [(1, "DISPATCHING")]
    assert worker.outbox.get(unknown.outbox_id) is None
    assert worker.outbox.attempts(unknown.outbox_id) == []


# Renewing, expiring, repairing.


@pytest.mark.invariant("INV-OUT-002")
def test_a_renewed_lease_ends_later_under_the_same_token(worker: Worker) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    renewed = worker.outbox.renew(claimed, lease=timedelta(hours=1))
    worker.session.commit()
    assert renewed.lease_expires_at > claimed.lease_expires_at
    assert renewed == claimed.model_copy(update={"lease_expires_at": renewed.lease_expires_at})
    status = worker.outbox.get(claimed.outbox_id)
    assert status is not None
    assert status.lease_expires_at == renewed.lease_expires_at
    # The token decides, not the expiry time in the record.
    assert worker.complete(claimed, DISPATCHED).state is AttemptState.DISPATCHED


def test_a_lease_may_be_renewed_to_end_earlier(worker: Worker) -> None:
    worker.enqueue(new())
    (claimed,) = worker.claim(lease=timedelta(days=1))
    assert worker.outbox.renew(claimed, lease=MINUTE).lease_expires_at < claimed.lease_expires_at


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "lease", [timedelta(seconds=0.5), timedelta(days=2), -MINUTE, timedelta(days=10**8)], ids=str
)
def test_a_renewal_out_of_bounds_is_refused(worker: Worker, lease: timedelta) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.outbox.renew(claimed, lease=lease)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_pending",
        column="lease_expires_at",
    )


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-005")
def test_an_expired_lease_is_closed_and_the_item_handed_out_in_the_same_claim(
    worker: Worker, owner: Connect
) -> None:
    (made,) = worker.enqueue(new())
    dead = worker.claim_one("w1")
    expire_leases(owner)
    claimed = worker.claim_one("w2")
    assert (claimed.outbox_id, claimed.attempt_no) == (made.outbox_id, 2)
    assert claimed.lease_token != dead.lease_token
    first, closing, second = worker.outbox.attempts(made.outbox_id)
    assert (closing.attempt_no, closing.state, closing.outcome) == (1, "ZOMBIE_REQUEUE", None)
    assert (closing.worker_id, closing.lease_token) == ("w1", dead.lease_token)
    assert closing.claimed_at == first.claimed_at
    assert (closing.requested_state, closing.error_code) == (None, None)
    assert (second.attempt_no, second.state, second.worker_id) == (2, "DISPATCHING", "w2")


@pytest.mark.invariant("INV-OUT-003")
def test_a_crash_loop_reaches_the_ceiling_and_fails_visibly(worker: Worker, owner: Connect) -> None:
    (made,) = worker.enqueue(new(max_attempts=3))
    for attempt_no in (1, 2, 3):
        assert worker.claim_one(f"w{attempt_no}").attempt_no == attempt_no
        expire_leases(owner)
    (other,) = worker.enqueue(new("other"))
    # The claim that closes it returns the other items.
    assert [one.outbox_id for one in worker.claim()] == [other.outbox_id]
    assert worker.history(made.outbox_id) == [
        (1, "DISPATCHING"),
        (1, "ZOMBIE_REQUEUE"),
        (2, "DISPATCHING"),
        (2, "ZOMBIE_REQUEUE"),
        (3, "DISPATCHING"),
        (3, "FAILED"),
    ]
    status = worker.outbox.get(made.outbox_id)
    assert status is not None
    assert (status.state, status.outcome, status.error_code, status.attempt_count) == (
        ItemState.FAILED,
        Outcome.UNKNOWN,
        "RETRY_CEILING_EXCEEDED",
        3,
    )


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-003")
@pytest.mark.parametrize("role", ["executor", "control"])
def test_a_repair_closes_what_has_expired_and_nothing_else(
    worker: Worker, session: Sessions, owner: Connect, role: str
) -> None:
    made = worker.enqueue(new("a"), new("b", max_attempts=1), new("c"))
    worker.claim("dead")
    expire_leases(owner)
    (live,) = worker.enqueue(new("d"))
    status = worker.outbox.get(live.outbox_id)
    repairer = session(role)
    outbox = OutboxRepository(repairer)
    assert outbox.repair_expired(limit=0) == []
    first = outbox.repair_expired(limit=2)
    rest = outbox.repair_expired(limit=2)
    assert outbox.repair_expired(limit=10_000) == []
    repairer.commit()
    assert [len(first), len(rest)] == [2, 1]
    by_id = {one.outbox_id: (one.attempt_no, one.state.value) for one in (*first, *rest)}
    assert [by_id[one.outbox_id] for one in made] == [
        (1, "ZOMBIE_REQUEUE"),
        (1, "FAILED"),
        (1, "ZOMBIE_REQUEUE"),
    ]
    assert worker.outbox.get(live.outbox_id) == status
    worker.session.commit()
    claimed = {one.idempotency_key: one.attempt_no for one in worker.claim()}
    assert claimed == {"a": 2, "c": 2, "d": 1}


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("limit", [-1, 10_001, 2**31])
def test_a_repair_out_of_bounds_is_refused(worker: Worker, limit: int) -> None:
    with pytest.raises(errors.InvalidParameterValue) as raised:
        worker.outbox.repair_expired(limit=limit)
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        table="payment_outbox_pending",
        column=None,
    )


@pytest.mark.invariant("INV-OUT-009")
@pytest.mark.parametrize("lease", ["leased", "expired", "free"])
@pytest.mark.parametrize("act", ["claim", "repair"])
def test_a_pending_row_whose_item_has_ended_is_removed_and_does_not_fail_the_rest(
    worker: Worker, owner: Connect, act: str, lease: str
) -> None:
    """Only a superuser can cause this: the row is inserted again with triggers off."""
    ended = worker.ended(DISPATCHED)
    (live,) = worker.enqueue(new("live"))
    worker.claim()
    expire_leases(owner)
    owner.execute("ALTER TABLE orchestration.payment_outbox_pending DISABLE TRIGGER USER")
    owner.execute(
        "INSERT INTO orchestration.payment_outbox_pending SELECT i.outbox_id, i.instruction_id,"
        " i.participant_id, i.sequence_id, i.rail_type, 1, i.created_at, a.worker_id,"
        " a.lease_token, clock_timestamp() - interval '1 minute'"
        " FROM orchestration.payment_outbox_items i"
        " JOIN orchestration.payment_outbox_attempts a USING (outbox_id)"
        " WHERE i.outbox_id = %s AND a.phase = 'OPEN'",
        (ended.outbox_id,),
    )
    if lease == "free":
        owner.execute(
            "UPDATE orchestration.payment_outbox_pending SET claimed_by = NULL, lease_token = NULL,"
            " lease_expires_at = NULL WHERE outbox_id = %s",
            (ended.outbox_id,),
        )
    elif lease == "leased":
        owner.execute(
            "UPDATE orchestration.payment_outbox_pending SET lease_expires_at = clock_timestamp()"
            " + interval '1 minute' WHERE outbox_id = %s",
            (ended.outbox_id,),
        )
    for trigger in ("guard_insert", "guard_update", "guard_delete", "no_truncate"):
        owner.execute(
            f"ALTER TABLE orchestration.payment_outbox_pending ENABLE ALWAYS TRIGGER {trigger}"
        )
    if lease == "leased":
        # Until its lease has expired no other worker gets it.
        assert [one.outbox_id for one in worker.claim()] == [live.outbox_id]
        expire_leases(owner)
    if act == "claim":
        assert [one.outbox_id for one in worker.claim()] == [live.outbox_id]
    else:
        repaired = worker.outbox.repair_expired(limit=10)
        worker.session.commit()
        assert [one.outbox_id for one in repaired] == [live.outbox_id]
        if lease == "free":
            assert [one.outbox_id for one in worker.claim()] == [live.outbox_id]
    assert worker.history(ended.outbox_id) == [(1, "DISPATCHING"), (1, "DISPATCHED")]
    status = worker.outbox.get(ended.outbox_id)
    assert status is not None
    assert (status.state, status.next_attempt_at) == (ItemState.DISPATCHED, None)


# Redriving.


@pytest.mark.invariant("INV-OUT-006", "INV-OUT-007")
@pytest.mark.parametrize("completion", [REJECTED, NOT_SENT], ids=["rejected", "not sent"])
def test_a_redrive_is_a_new_item_after_the_one_that_failed(
    worker: Worker, control: Worker, completion: Completion
) -> None:
    old = worker.ended(completion, payload={"b": 1.0}, max_attempts=3)
    made = control.redrive(old.outbox_id)
    assert made == OutboxItemRecord(
        **old.model_dump()
        | {
            "outbox_id": made.outbox_id,
            "sequence_id": 2,
            "redrive_no": 1,
            "redrive_of": old.outbox_id,
            "created_at": made.created_at,
            "db_user": made.db_user,
        }
    )
    assert made.db_user.endswith("control")
    assert control.redrive(old.outbox_id) == made
    assert control.redrive(old.outbox_id) == made
    claimed = worker.claim_one()
    assert (claimed.outbox_id, claimed.redrive_no, claimed.attempt_no) == (made.outbox_id, 1, 1)
    assert claimed.payload == {"b": 1.0}
    assert control.redrive(old.outbox_id) == made
    worker.complete(claimed, DISPATCHED)


@pytest.mark.invariant("INV-OUT-006")
@pytest.mark.parametrize(
    ("completion", "state", "outcome"),
    [
        (DISPATCHED, "DISPATCHED", "SENT"),
        (FAILED, "FAILED", "UNKNOWN"),
        (RETRYABLE, "PENDING", None),
        (None, "PENDING", None),
    ],
    ids=["dispatched", "unknown", "retried", "leased"],
)
def test_an_item_that_did_not_fail_for_certain_is_not_redriven(
    worker: Worker,
    control: Worker,
    completion: Completion | None,
    state: str,
    outcome: str | None,
) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one()
    if completion is not None:
        worker.complete(claimed, completion)
    with pytest.raises(errors.InvalidAttemptTransition) as raised:
        control.redrive(made.outbox_id)
    assert_refused(
        raised.value,
        sqlstate="P7005",
        invariant="INV-OUT-006",
        table="payment_outbox_items",
        column="outbox_id",
    )
    assert raised.value.detail == {
        "outbox_id": str(made.outbox_id),
        "newest": str(made.outbox_id),
        "state": state,
        "outcome": outcome,
    }


@pytest.mark.invariant("INV-OUT-006")
@pytest.mark.parametrize(
    "completion", [DISPATCHED, FAILED, REJECTED], ids=["dispatched", "unknown", "rejected"]
)
def test_only_the_newest_item_of_a_key_is_redriven(
    worker: Worker, control: Worker, completion: Completion
) -> None:
    first = worker.ended(REJECTED)
    second = control.redrive(first.outbox_id)
    worker.complete(worker.claim_one(), completion)
    with pytest.raises(errors.InvalidAttemptTransition) as raised:
        control.redrive(first.outbox_id)
    assert raised.value.detail is not None
    assert raised.value.detail["newest"] == str(second.outbox_id)
    control.session.rollback()
    if completion is REJECTED:
        assert control.redrive(second.outbox_id).redrive_no == 2


@pytest.mark.invariant("INV-INS-006")
def test_an_item_of_an_instruction_that_has_ended_is_not_redriven(
    worker: Worker, control: Worker, owner: Connect
) -> None:
    made = worker.ended(REJECTED)
    move(owner, made.instruction_id, "FAILED")
    with pytest.raises(errors.InstructionStateForbids) as raised:
        control.redrive(made.outbox_id)
    assert_refused(
        raised.value,
        sqlstate="P7404",
        invariant="INV-INS-006",
        table="instructions",
        column="state",
        retry=Retry.AFTER_RESOLUTION,
    )
    assert raised.value.detail == {
        "id": str(made.instruction_id),
        "state": "FAILED",
        "outbox_id": str(made.outbox_id),
    }
    worker.session.rollback()
    assert worker.claim() == []


# Reading.


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_every_role_sees_the_state_of_an_item_and_the_queue_depth(
    worker: Worker, session: Sessions, owner: Connect, role: str
) -> None:
    hour = datetime.now(UTC) + timedelta(hours=1)
    made = worker.enqueue(
        new("expired"),
        new("leased"),
        new("due"),
        new("later", due_at=hour),
        new("x", rail_type="X"),
    )
    worker.claim("w1", batch_size=1)
    expire_leases(owner)
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending SET next_attempt_at = %s WHERE outbox_id = %s",
        (hour, made[0].outbox_id),
    )
    worker.claim("w2", batch_size=1)
    outbox = OutboxRepository(session(role))
    assert outbox.depth() == [
        OutboxDepth(
            rail_type="SEPA",
            pending=4,
            due=1,
            leased=1,
            expired=1,
            oldest_due_at=outbox.depth()[0].oldest_due_at,
        ),
        OutboxDepth(
            rail_type="X",
            pending=1,
            due=1,
            leased=0,
            expired=0,
            oldest_due_at=outbox.depth()[1].oldest_due_at,
        ),
    ]
    status = outbox.get(made[2].outbox_id)
    assert status is not None
    assert status.model_dump(include=set(OutboxItemRecord.model_fields) - UNSHOWN) == made[
        2
    ].model_dump(exclude=UNSHOWN)
    assert (status.state, status.attempt_count, status.claimed_by) == (ItemState.PENDING, 0, None)


def test_a_leased_item_is_being_dispatched(worker: Worker) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one("w1")
    status = worker.outbox.get(claimed.outbox_id)
    assert status is not None
    assert (status.state, status.claimed_by) == (ItemState.DISPATCHING, "w1")
    assert status.lease_expires_at == claimed.lease_expires_at


def acts(outbox: OutboxRepository, item: ClaimedItem) -> dict[str, Callable[[], object]]:
    return {
        "enqueue": lambda: outbox.enqueue(new("more")),
        "claim": lambda: outbox.claim("w", batch_size=1, lease=MINUTE),
        "renew": lambda: outbox.renew(item, lease=MINUTE),
        "complete": lambda: outbox.complete(item, DISPATCHED),
        "complete_many": lambda: outbox.complete_many([(item, DISPATCHED)]),
        "repair_expired": lambda: outbox.repair_expired(limit=1),
        "redrive": lambda: outbox.redrive(item.outbox_id),
        "attempts": lambda: outbox.attempts(item.outbox_id),
        "get": lambda: outbox.get(item.outbox_id),
        "depth": lambda: outbox.depth(),
        "record_late_result": lambda: outbox.record_late_result(item, outcome=LateOutcome.SENT),
        "resolve": lambda: outbox.resolve(item.outbox_id, outcome=LateOutcome.SENT, reason="test"),
        "cancel": lambda: outbox.cancel(item.outbox_id, reason="test"),
        "reschedule": lambda: outbox.reschedule(item.outbox_id, due_at=item.claimed_at),
        "expire_lease": lambda: outbox.expire_lease(item.outbox_id, reason="test"),
        "close_contradiction": lambda: outbox.close_contradiction(item.outbox_id, 1, reason="test"),
        "unresolved": lambda: outbox.unresolved(),
        "contradictions": lambda: outbox.contradictions(),
    }


ALLOWED = {
    "ingest": {"get", "depth"},
    "executor": {
        *("enqueue", "claim", "renew", "complete", "complete_many", "repair_expired"),
        *("record_late_result", "attempts", "get", "depth", "unresolved", "contradictions"),
    },
    "control": {
        *("repair_expired", "redrive", "resolve", "cancel", "reschedule", "expire_lease"),
        *("close_contradiction", "attempts", "get", "depth", "unresolved", "contradictions"),
    },
    "readonly": {"attempts", "get", "depth", "unresolved", "contradictions"},
    "auditor": {"attempts", "get", "depth", "unresolved", "contradictions"},
}


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_a_role_does_what_is_its_own_and_nothing_else(
    worker: Worker, session: Sessions, role: str
) -> None:
    worker.enqueue(new())
    claimed = worker.claim_one()
    as_role = session(role)
    refused = set()
    for name, act in acts(OutboxRepository(as_role), claimed).items():
        try:
            act()
        except errors.InsufficientPrivilege:
            refused.add(name)
        except errors.InvalidAttemptTransition:
            assert name in ("redrive", "resolve", "cancel", "reschedule")
        except errors.NotFound:
            assert name == "close_contradiction"
        as_role.rollback()
    assert set(acts(OutboxRepository(as_role), claimed)) - refused == ALLOWED[role]


# Values.


def test_records_are_frozen(worker: Worker) -> None:
    (made,) = worker.enqueue(new())
    claimed = worker.claim_one()
    result = worker.complete(claimed, DISPATCHED)
    records = [
        *(made, claimed, result, DISPATCHED, worker.outbox.get(made.outbox_id)),
        *worker.outbox.attempts(made.outbox_id),
    ]
    for one in records:
        assert one is not None
        with pytest.raises(ValidationError, match="frozen"):
            one.outbox_id = made.outbox_id


def test_results_outlive_their_session(engine: Callable[[str], Engine]) -> None:
    with Session(engine("executor")) as session:
        worker = Worker(session)
        (made,) = worker.enqueue(new())
        claimed = worker.claim_one()
    assert claimed.outbox_id == made.outbox_id
    with Session(engine("executor")) as session:
        assert OutboxRepository(session).complete(claimed, DISPATCHED).error is None
        session.commit()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"state": "SENT"}, "state"),
        ({"state": "DISPATCHING"}, "state"),
        ({"state": "ZOMBIE_REQUEUE"}, "state"),
        ({"state": "DISPATCHED", "outcome": "UNKNOWN"}, None),
        ({"state": "FAILED", "outcome": "PERHAPS"}, "outcome"),
        ({"state": "FAILED"}, None),
        ({"state": "FAILED", "outcome": "UNKNOWN", "retry_in": timedelta(seconds=1)}, None),
        ({"state": "DISPATCHED", "retry_in": timedelta(seconds=1)}, None),
        ({"state": "RETRYABLE", "retry_in": timedelta(microseconds=-1)}, "retry_in"),
        ({"state": "DISPATCHED", "latency_ms": -1}, "latency_ms"),
        ({"state": "DISPATCHED", "latency_ms": 2**31}, "latency_ms"),
        ({"state": "DISPATCHED", "latency_ms": 1.5}, "latency_ms"),
        ({"state": "DISPATCHED", "latency_ms": "1"}, "latency_ms"),
        ({"state": "DISPATCHED", "rail_reference": "a\x00b"}, "rail_reference"),
        ({"state": "DISPATCHED", "rail_reference": 1}, "rail_reference"),
        ({"state": "FAILED", "error_message": "\ud800"}, "error_message"),
        ({"state": "FAILED", "unknown": 1}, "unknown"),
        ({}, "state"),
    ],
)
def test_a_completion_that_says_what_cannot_be_is_refused(
    values: dict[str, Any], field: str | None
) -> None:
    with pytest.raises(ValidationError) as raised:
        Completion(**values)
    assert [one["loc"][:1] for one in raised.value.errors()] == [(field,) if field else ()]
