"""InstructionRepository as the services use it: in the caller's transaction, as their roles."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session
from tools import scratch

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import (
    Completion,
    InstructionRecord,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
    StatusHistoryRecord,
)
from orchestration.repo import AttestationRepository, InstructionRepository, OutboxRepository
from orchestration.vocabulary import CompletionState, InstructionState, Outcome
from tests.support import Connect, activate_policy, digest, replayed, scalar

Sessions = Callable[[str], Session]

RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")
NOWHERE = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
UETR = UUID("eb6305c9-1f7f-49de-aed0-16487c27b42d")
MINUTE = timedelta(minutes=1)

RECEIVED, AUTHORIZED, EXECUTING, COMPLETED, FAILED = InstructionState

DISPATCHED = Completion(state=CompletionState.DISPATCHED)
RETRYABLE = Completion(state=CompletionState.RETRYABLE)
REJECTED = Completion(state=CompletionState.FAILED, outcome=Outcome.REJECTED)
NOT_SENT = Completion(state=CompletionState.FAILED, outcome=Outcome.NOT_SENT)
UNKNOWN = Completion(state=CompletionState.FAILED, outcome=Outcome.UNKNOWN)


class Service:
    """A service that commits after each call."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.instructions = InstructionRepository(session)
        self.outbox = OutboxRepository(session)

    def receive(self, new: NewInstruction) -> InstructionRecord:
        return self._kept(self.instructions.receive(new))

    def authorize(self, one: InstructionRecord) -> InstructionRecord:
        return self._kept(self.instructions.authorize(one.id, version=one.version))

    def start(self, one: InstructionRecord) -> InstructionRecord:
        return self._kept(self.instructions.start_execution(one.id, version=one.version))

    def complete(self, one: InstructionRecord) -> InstructionRecord:
        return self._kept(self.instructions.complete(one.id, version=one.version))

    def fail(self, one: InstructionRecord, reason: str = "AC04") -> InstructionRecord:
        return self._kept(self.instructions.fail(one.id, version=one.version, reason=reason))

    def enqueue(self, one: InstructionRecord, key: str = "k") -> None:
        self.outbox.enqueue(
            NewOutboxItem(
                instruction_id=one.id,
                participant_id=one.participant_id,
                idempotency_key=key,
                rail_type="SEPA",
                payload={},
            )
        )
        self.session.commit()

    def attempt(self, completion: Completion) -> None:
        """Claim the next item and report this outcome."""
        (claimed,) = self.outbox.claim("w", batch_size=1, lease=MINUTE)
        self.outbox.complete(claimed, completion)
        self.session.commit()

    def _kept(self, made: InstructionRecord) -> InstructionRecord:
        self.session.commit()
        return made


@pytest.fixture
def attestation_id(session: Sessions, owner: Connect) -> UUID:
    activate_policy(owner)
    ingest = session("ingest")
    made = AttestationRepository(ingest).append(
        NewAttestation(
            caller_identity="alice",
            idempotency_key="k",
            payload_hash=digest("k"),
            policy_version_id="v1",
            client_cert_fingerprint_sha256=digest("cert"),
            token_hash=digest("token"),
        )
    )
    ingest.commit()
    return made.id


@pytest.fixture
def new(attestation_id: UUID) -> Callable[..., NewInstruction]:
    def make(key: str = "k", **changed: Any) -> NewInstruction:
        values: dict[str, Any] = {
            "participant_id": "bank-a",
            "idempotency_key": key,
            "instruction_type": "pain.001",
            "end_to_end_id": f"E2E-{key}",
            "uetr": UETR,
            "value_date": date(2026, 2, 28),
            "amount_minor": 12_345,
            "currency": "EUR",
            "debtor_account": "DE02120300000000202051",
            "creditor_account": "DE02500105170137075030",
            "payload": {"remittance": ["RF18", {"lines": 1}]},
            "attestation_id": attestation_id,
            "policy_version_id": "v1",
        }
        return NewInstruction(**(values | changed))

    return make


New = Callable[..., NewInstruction]


@pytest.fixture
def ingest(session: Sessions) -> Service:
    return Service(session("ingest"))


@pytest.fixture
def executor(session: Sessions) -> Service:
    return Service(session("executor"))


@pytest.fixture
def received(ingest: Service, new: New) -> InstructionRecord:
    """Receive one instruction and commit it."""
    return ingest.receive(new())


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    for verify in ("verify_instructions", "verify_outbox"):
        assert owner.execute(f"SELECT * FROM orchestration.{verify}()").fetchall() == []


def reach(executor: Service, one: InstructionRecord, state: InstructionState) -> InstructionRecord:
    """Bring a received instruction into this state, with the calls that its executor makes."""
    if state is RECEIVED:
        return one
    if state is FAILED:
        return executor.fail(one)
    one = executor.authorize(one)
    if state is not AUTHORIZED:
        one = executor.start(one)
    if state is COMPLETED:
        executor.enqueue(one)
        executor.attempt(DISPATCHED)
        one = executor.complete(one)
    return one


def count(owner: Connect) -> int:
    return int(scalar(owner, "SELECT count(*) FROM orchestration.instructions"))


def assert_refused(
    error: OrchestrationError,
    *,
    sqlstate: str,
    invariant: str,
    table: str = "instructions",
    column: str | None,
    detail: dict[str, object],
    retry: Retry = Retry.NEVER,
) -> None:
    assert (error.sqlstate, error.invariant, error.constraint) == (sqlstate, invariant, invariant)
    assert (error.schema, error.table, error.column) == ("orchestration", table, column)
    assert error.detail == detail
    assert error.hint
    assert error.retry is retry
    assert str(error).startswith(f"{invariant}: ")
    assert isinstance(error.__cause__, psycopg.Error)


# Receiving.


@pytest.mark.invariant("INV-INS-001")
def test_an_instruction_is_returned_as_it_was_stored(
    ingest: Service, new: New, attestation_id: UUID, database: scratch.Database
) -> None:
    made = ingest.receive(new())
    assert made == InstructionRecord(
        id=made.id,
        participant_id="bank-a",
        idempotency_key="k",
        instruction_type="pain.001",
        end_to_end_id="E2E-k",
        uetr=UETR,
        value_date=date(2026, 2, 28),
        amount_minor=12_345,
        currency="EUR",
        payload_hash=made.payload_hash,
        attestation_id=attestation_id,
        policy_version_id="v1",
        state=RECEIVED,
        reason=None,
        version=1,
        created_at=made.created_at,
        updated_at=made.created_at,
        completed_at=None,
        db_user=made.db_user,
    )
    assert made.id.version == 7
    assert made.created_at.tzinfo is not None
    assert made.db_user == database.as_role("ingest").username
    assert ingest.instructions.get(made.id) == made


def test_what_may_be_left_out_is_none(ingest: Service, new: New) -> None:
    made = ingest.receive(new(uetr=None, value_date=None))
    assert (made.uetr, made.value_date) == (None, None)
    assert ingest.receive(new(uetr=None, value_date=None)) == replayed(made)


@pytest.mark.parametrize("key", ["ключ", "🏦💶", "a, 3:b", 'quote" \\ {}', " ", "\t\n", "\u0085"])
def test_any_text_comes_back_as_it_went_in(ingest: Service, new: New, key: str) -> None:
    asked = new(key, participant_id=key, end_to_end_id=key, payload={key: key})
    made = ingest.receive(asked)
    assert (made.participant_id, made.idempotency_key, made.end_to_end_id) == (key, key, key)
    assert ingest.receive(asked) == replayed(made)


@pytest.mark.parametrize(
    "changed",
    [
        {"amount_minor": 1},
        {"amount_minor": 2**63 - 1},
        {"value_date": date(1, 1, 1)},
        {"value_date": date(9998, 12, 31)},
        {"payload": {}},
        {"payload": {"amount": 1e300, "n": 10**400, "deep": [[[[]]]]}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_values_at_the_bounds_are_received(
    ingest: Service, new: New, changed: dict[str, Any]
) -> None:
    made = ingest.receive(new(**changed))
    for field, value in changed.items():
        if field != "payload":
            assert getattr(made, field) == value
    assert ingest.receive(new(**changed)) == replayed(made)


def test_a_batch_is_returned_in_its_order(ingest: Service, new: New) -> None:
    news = [
        new(str(n), participant_id=("bank-c", "bank-a", "bank-b")[n % 3]) for n in range(30, 0, -1)
    ]
    records = ingest.instructions.receive_many(iter(news))
    assert [(made.participant_id, made.idempotency_key) for made in records] == [
        (one.participant_id, one.idempotency_key) for one in news
    ]
    assert len({made.id for made in records}) == 30


@pytest.mark.invariant("INV-INS-003")
def test_a_key_is_its_participant_s(ingest: Service, new: New) -> None:
    one, other = ingest.instructions.receive_many([new(), new(participant_id="bank-b")])
    assert one.id != other.id


@pytest.mark.invariant("INV-INS-003", "INV-INS-008")
def test_a_replay_gives_the_same(ingest: Service, new: New, owner: Connect) -> None:
    first = ingest.receive(new())
    for _ in range(3):
        assert ingest.receive(new()) == replayed(first)
    assert count(owner) == 1
    again, other = ingest.instructions.receive_many([new(), new("k2")])
    assert (again, other.idempotency_key) == (replayed(first), "k2")


@pytest.mark.invariant("INV-INS-008")
@pytest.mark.parametrize("state", [AUTHORIZED, EXECUTING, COMPLETED, FAILED])
def test_a_replay_returns_the_current_instruction(
    ingest: Service,
    executor: Service,
    received: InstructionRecord,
    new: New,
    state: InstructionState,
) -> None:
    reached = reach(executor, received, state)
    assert reached.state is state
    assert ingest.receive(new()) == replayed(reached)
    assert ingest.instructions.receive_many([new(), new()]) == [replayed(reached)] * 2


@pytest.mark.invariant("INV-INS-008")
def test_a_replay_keeps_the_attestation_and_policy_of_the_first_call(
    ingest: Service, received: InstructionRecord, new: New, owner: Connect
) -> None:
    for id in ("v2", "v3"):
        activate_policy(owner, id)
    again = AttestationRepository(ingest.session).append(
        NewAttestation(
            caller_identity="bob",
            idempotency_key="k",
            payload_hash=digest("k"),
            policy_version_id="v3",
        )
    )
    replay = new(attestation_id=again.id, policy_version_id="v3")
    assert ingest.receive(replay) == replayed(received)


@pytest.mark.invariant("INV-INS-003", "INV-INS-008")
def test_a_key_twice_in_a_batch_is_one_instruction_at_each_place(
    ingest: Service, new: New, owner: Connect
) -> None:
    ingest.receive(new("old"))
    keys = ("a", "b", "a", "old", "c", "b", "a")
    records = ingest.instructions.receive_many([new(key) for key in keys])
    assert [made.idempotency_key for made in records] == list(keys)
    assert replayed(records[0]) == records[2] == records[6]
    assert replayed(records[1]) == records[5]
    ingest.session.commit()
    assert count(owner) == 4


OTHER_CONTENT: list[dict[str, Any]] = [
    {"instruction_type": "pain.008"},
    {"end_to_end_id": "other"},
    {"uetr": None},
    {"uetr": UUID(int=UETR.int + 1)},
    {"value_date": None},
    {"value_date": date(2026, 3, 1)},
    {"amount_minor": 12_346},
    {"currency": "USD"},
    {"debtor_account": "other"},
    {"creditor_account": "other"},
    {"payload": {}},
    {"payload": {"remittance": ["RF18", {"lines": 1.0}]}},
    {"payload": {"remittance": ["RF18", {"lines": "1"}]}},
]


@pytest.mark.invariant("INV-INS-008")
@pytest.mark.parametrize("changed", OTHER_CONTENT, ids=str)
@pytest.mark.parametrize("where", ["received before", "within the batch"])
def test_a_key_with_other_content_undoes_the_batch(
    ingest: Service, new: New, owner: Connect, changed: dict[str, Any], where: str
) -> None:
    first = ingest.receive(new("k1"))
    key = "k1" if where == "received before" else "k3"
    news = [new("k2"), new("k3"), new(key) if key == "k3" else new("k4"), new(key, **changed)]
    with pytest.raises(errors.IdempotencyConflict) as raised, ingest.session.begin_nested():
        ingest.instructions.receive_many(news)
    error = raised.value
    assert error.detail is not None
    assert_refused(
        error,
        sqlstate="P7402",
        invariant="INV-INS-008",
        column="idempotency_key",
        detail={
            "id": error.detail["id"],
            "participant_id": "bank-a",
            "idempotency_key": key,
        },
    )
    assert (error.detail["id"] == str(first.id)) is (key == "k1")
    # The Session continues, and nothing of the batch was stored.
    assert ingest.receive(new("k1")) == replayed(first)
    assert count(owner) == 1


@pytest.mark.invariant("INV-INS-008")
def test_the_same_payload_in_another_order_is_the_same_content(ingest: Service, new: New) -> None:
    first = ingest.receive(new(payload={"b": 1, "a": [1, 2]}))
    assert ingest.receive(new(payload={"a": [1, 2], "b": 1})) == replayed(first)


@pytest.mark.invariant("INV-ATT-008")
def test_an_unknown_policy_undoes_the_batch(ingest: Service, new: New, owner: Connect) -> None:
    with (
        pytest.raises(errors.PolicyNotAccepted) as raised,
        ingest.session.begin_nested(),
    ):
        ingest.instructions.receive_many([new("k1"), new("k2", policy_version_id="v9")])
    error = raised.value
    assert error.detail is not None
    assert_refused(
        error,
        sqlstate="P7105",
        invariant="INV-ATT-008",
        table="policy_versions",
        column="id",
        detail={
            "id": "v9",
            "participant_id": "bank-a",
            "idempotency_key": "k2",
        },
    )
    assert ingest.receive(new("k1")).state is RECEIVED
    assert count(owner) == 1


def test_an_unknown_attestation_undoes_the_batch(ingest: Service, new: New, owner: Connect) -> None:
    with (
        pytest.raises(errors.ForeignKeyViolation) as raised,
        ingest.session.begin_nested(),
    ):
        ingest.instructions.receive_many([new("k1"), new("k2", attestation_id=NOWHERE)])
    error = raised.value
    assert error.invariant == "INV-INS-011"
    assert (error.sqlstate, error.table, error.constraint, error.retry) == (
        "23503",
        "instructions",
        "fk_instructions_attestation_id_policy_version_id",
        Retry.NEVER,
    )
    assert ingest.receive(new("k1")).state is RECEIVED
    assert count(owner) == 1


# The size of a batch.


def test_a_batch_of_none_is_none(session: Sessions) -> None:
    assert InstructionRepository(session("ingest")).receive_many([]) == []


@pytest.mark.invariant("INV-API-001")
def test_ten_thousand_are_a_batch_and_one_more_is_too_many(
    ingest: Service, new: New, owner: Connect
) -> None:
    news = [new(str(n), participant_id=f"bank-{n % 10}") for n in range(10_001)]
    with pytest.raises(errors.InvalidParameterValue) as raised, ingest.session.begin_nested():
        ingest.instructions.receive_many(news)
    assert_refused(raised.value, sqlstate="22023", invariant="INV-API-001", column=None, detail={})
    records = ingest.instructions.receive_many(news[:-1])
    ingest.session.commit()
    assert [made.idempotency_key for made in records] == [str(n) for n in range(10_000)]
    assert count(owner) == 10_000


def test_a_batch_of_any_size_is_one_round_trip(
    ingest: Service, engine: Callable[[str], Engine], new: New
) -> None:
    ingest.session.execute(text("SELECT 1"))
    statements: list[str] = []
    event.listen(
        engine("ingest"),
        "before_cursor_execute",
        lambda _c, _cur, statement, *_: statements.append(statement),
    )
    for size in (0, 1, 500):
        statements.clear()
        ingest.instructions.receive_many([new(f"{size}-{n}") for n in range(size)])
        assert len(statements) == 1
        assert "receive_instruction" in statements[0]


# Transitions.


@pytest.mark.invariant("INV-INS-001", "INV-INS-004")
def test_an_instruction_goes_its_way_and_leaves_its_history(
    ingest: Service,
    executor: Service,
    new: New,
    database: scratch.Database,
) -> None:
    before = datetime.now(UTC) - MINUTE
    received = ingest.receive(new())
    authorized = executor.authorize(received)
    executing = executor.start(authorized)
    executor.enqueue(executing)
    executor.attempt(DISPATCHED)
    completed = executor.complete(executing)
    way = [received, authorized, executing, completed]
    assert [(one.state, one.version) for one in way] == [
        (RECEIVED, 1),
        (AUTHORIZED, 2),
        (EXECUTING, 3),
        (COMPLETED, 4),
    ]
    times = [one.updated_at for one in way]
    assert times == sorted(set(times))
    assert before < times[0]
    assert [one.completed_at for one in way] == [None, None, None, completed.updated_at]
    kept = {"state", "version", "updated_at", "completed_at"}
    assert all(one.model_dump(exclude=kept) == received.model_dump(exclude=kept) for one in way)
    assert executor.instructions.get(received.id) == completed
    by_ingest, by_executor = (database.as_role(role).username for role in ("ingest", "executor"))
    assert executor.instructions.history(received.id) == [
        StatusHistoryRecord(
            instruction_id=received.id,
            version=one.version,
            participant_id="bank-a",
            from_state=from_state,
            to_state=one.state,
            reason=None,
            occurred_at=one.updated_at,
            db_user=by_ingest if one is received else by_executor,
        )
        for from_state, one in zip([None, RECEIVED, AUTHORIZED, EXECUTING], way, strict=True)
    ]


@pytest.mark.invariant("INV-INS-001", "INV-INS-004")
@pytest.mark.parametrize("state", [RECEIVED, AUTHORIZED, EXECUTING])
def test_an_instruction_fails_from_any_state_that_is_not_final(
    executor: Service, received: InstructionRecord, state: InstructionState
) -> None:
    before = reach(executor, received, state)
    failed = executor.fail(before, "Ungültig: 🏦\n")
    assert (failed.state, failed.reason, failed.version) == (
        FAILED,
        "Ungültig: 🏦\n",
        before.version + 1,
    )
    assert failed.completed_at == failed.updated_at
    history = executor.instructions.history(received.id)
    assert [(one.to_state, one.reason) for one in history[:-1]] == [
        (one, None) for one in (RECEIVED, AUTHORIZED, EXECUTING)[: before.version]
    ]
    assert (history[-1].from_state, history[-1].to_state, history[-1].reason) == (
        state,
        FAILED,
        "Ungültig: 🏦\n",
    )


ACTS: dict[str, Callable[[InstructionRepository, UUID, int], InstructionRecord]] = {
    "authorize": lambda i, id, version: i.authorize(id, version=version),
    "start_execution": lambda i, id, version: i.start_execution(id, version=version),
    "complete": lambda i, id, version: i.complete(id, version=version),
    "fail": lambda i, id, version: i.fail(id, version=version, reason="AC04"),
}
LEADS_TO = dict(zip(ACTS, (AUTHORIZED, EXECUTING, COMPLETED, FAILED), strict=True))
ALLOWED = {
    ("authorize", RECEIVED),
    ("start_execution", AUTHORIZED),
    ("complete", EXECUTING),
    ("fail", RECEIVED),
    ("fail", AUTHORIZED),
    ("fail", EXECUTING),
}

each_act = pytest.mark.parametrize("name", ACTS)


@pytest.mark.invariant("INV-INS-001", "INV-INS-002")
@pytest.mark.parametrize(
    ("name", "state"),
    [(name, state) for name in ACTS for state in InstructionState if (name, state) not in ALLOWED],
)
def test_a_transition_that_does_not_follow_is_refused(
    executor: Service, received: InstructionRecord, name: str, state: InstructionState
) -> None:
    stands = reach(executor, received, state)
    final = state in (COMPLETED, FAILED)
    with (
        pytest.raises(errors.InvalidInstructionTransition) as raised,
        executor.session.begin_nested(),
    ):
        ACTS[name](executor.instructions, stands.id, stands.version)
    assert_refused(
        raised.value,
        sqlstate="P7401",
        invariant="INV-INS-002" if final and state is not LEADS_TO[name] else "INV-INS-001",
        column="state",
        detail={"id": str(stands.id), "from": state.value, "to": LEADS_TO[name].value},
    )
    assert executor.instructions.get(stands.id) == stands
    assert len(executor.instructions.history(stands.id)) == stands.version


@pytest.mark.invariant("INV-INS-009")
@pytest.mark.parametrize("given", ["older", "newer"])
@each_act
def test_a_transition_that_was_decided_on_another_version_is_refused(
    executor: Service, received: InstructionRecord, name: str, given: str
) -> None:
    stands = executor.start(executor.authorize(received))
    # The version before the last transition would make the call a repetition.
    older = 1 if name == "start_execution" else 2
    version = stands.version + 1 if given == "newer" else older
    with pytest.raises(errors.StaleInstruction) as raised, executor.session.begin_nested():
        ACTS[name](executor.instructions, stands.id, version)
    assert_refused(
        raised.value,
        sqlstate="P7403",
        invariant="INV-INS-009",
        column="version",
        detail={
            "id": str(stands.id),
            "version": 3,
            "given": version,
            "state": "EXECUTING",
        },
        retry=Retry.AFTER_RESOLUTION,
    )
    assert executor.instructions.get(stands.id) == stands


@pytest.mark.invariant("INV-API-002")
@each_act
def test_a_transition_of_nothing_is_not_found(executor: Service, name: str) -> None:
    with pytest.raises(errors.NotFound) as raised, executor.session.begin_nested():
        ACTS[name](executor.instructions, NOWHERE, 1)
    assert_refused(
        raised.value,
        sqlstate="P0002",
        invariant="INV-API-002",
        column="id",
        detail={"id": str(NOWHERE)},
    )
    assert executor.instructions.get(NOWHERE) is None


def test_of_nothing_there_is_no_state_and_no_history(executor: Service) -> None:
    assert executor.instructions.get(uuid4()) is None
    assert executor.instructions.history(uuid4()) == []


# Authorizing.


@pytest.mark.invariant("INV-INS-007")
def test_the_login_that_received_it_does_not_authorize_it(
    executor: Service, new: New, owner: Connect, session: Sessions, database: scratch.Database
) -> None:
    # Even if one login has both roles.
    owner.execute(
        "GRANT EXECUTE ON FUNCTION orchestration.receive_instruction(jsonb) TO symphony_executor"
    )
    owner.execute(
        "GRANT EXECUTE ON FUNCTION orchestration.authorize_instruction(uuid, integer)"
        " TO symphony_control"
    )
    mine = executor.receive(new())
    with pytest.raises(errors.SegregationOfDuties) as raised, executor.session.begin_nested():
        executor.instructions.authorize(mine.id, version=1)
    assert_refused(
        raised.value,
        sqlstate="P7405",
        invariant="INV-INS-007",
        column="db_user",
        detail={"id": str(mine.id), "db_user": database.as_role("executor").username},
    )
    assert executor.instructions.get(mine.id) == mine
    executor.session.commit()
    assert Service(session("control")).authorize(mine).state is AUTHORIZED


@pytest.mark.invariant("INV-INS-010")
def test_a_policy_in_grace_authorizes_and_a_retired_one_does_not(
    ingest: Service, executor: Service, new: New, owner: Connect
) -> None:
    first, second = ingest.receive(new("k1")), ingest.receive(new("k2"))
    activate_policy(owner, "v2")
    assert executor.authorize(first).state is AUTHORIZED
    activate_policy(owner, "v3")
    with pytest.raises(errors.PolicyNotAccepted) as raised, executor.session.begin_nested():
        executor.instructions.authorize(second.id, version=1)
    assert_refused(
        raised.value,
        sqlstate="P7105",
        invariant="INV-INS-010",
        table="policy_versions",
        column="id",
        detail={"id": "v1", "instruction_id": str(second.id)},
    )
    # It can still be failed.
    assert executor.fail(second).state is FAILED


@pytest.mark.invariant("INV-INS-010")
@pytest.mark.parametrize(
    ("function", "credential", "table", "column"),
    [
        ("revoke_client_cert", "cert", "revoked_client_certs", "cert_fingerprint_sha256"),
        ("revoke_token", "token", "revoked_tokens", "token_hash"),
    ],
    ids=["certificate", "token"],
)
def test_a_revoked_credential_does_not_authorize(
    executor: Service,
    received: InstructionRecord,
    owner: Connect,
    function: str,
    credential: str,
    table: str,
    column: str,
) -> None:
    owner.execute(f"SELECT orchestration.{function}(%s, 'superseded')", (digest("another"),))
    owner.execute(f"SELECT orchestration.{function}(%s, 'superseded')", (digest(credential),))
    with pytest.raises(errors.CredentialRevoked) as raised, executor.session.begin_nested():
        executor.instructions.authorize(received.id, version=1)
    assert_refused(
        raised.value,
        sqlstate="P7202",
        invariant="INV-INS-010",
        table=table,
        column=column,
        detail={
            "credential": "CLIENT_CERT" if credential == "cert" else "TOKEN",
            "instruction_id": str(received.id),
        },
    )
    assert executor.fail(received).state is FAILED


@pytest.mark.invariant("INV-INS-010")
def test_what_was_authorized_before_goes_on_under_a_revoked_credential(
    executor: Service, received: InstructionRecord, owner: Connect
) -> None:
    authorized = executor.authorize(received)
    owner.execute("SELECT orchestration.revoke_token(%s, 'superseded')", (digest("token"),))
    for id in ("v2", "v3"):
        activate_policy(owner, id)
    assert executor.start(authorized).state is EXECUTING


# Ending, and the outbox.


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("attempted", [False, True], ids=["waiting", "to be tried again"])
@pytest.mark.parametrize("name", ["complete", "fail"])
def test_an_instruction_does_not_end_before_its_items(
    executor: Service, received: InstructionRecord, name: str, attempted: bool
) -> None:
    executing = reach(executor, received, EXECUTING)
    executor.enqueue(executing, "k1")
    executor.attempt(DISPATCHED if name == "complete" else REJECTED)
    executor.enqueue(executing, "k2")
    if attempted:
        executor.attempt(RETRYABLE)
    with pytest.raises(errors.InstructionStateForbids) as raised, executor.session.begin_nested():
        ACTS[name](executor.instructions, executing.id, executing.version)
    assert type(raised.value) is errors.InstructionStateForbids
    assert_refused(
        raised.value,
        sqlstate="P7404",
        invariant="INV-INS-006",
        column="state",
        detail={"id": str(executing.id), "to": LEADS_TO[name].value},
        retry=Retry.AFTER_RESOLUTION,
    )
    assert executor.instructions.get(executing.id) == executing


UNTIMELY: dict[str, tuple[str, list[Completion], int, int]] = {
    "complete, no item": ("complete", [], 0, 0),
    "complete, rejected": ("complete", [REJECTED, NOT_SENT], 0, 0),
    "complete, unknown": ("complete", [UNKNOWN], 0, 1),
    "fail, dispatched": ("fail", [REJECTED, DISPATCHED], 1, 0),
    "fail, unknown": ("fail", [UNKNOWN], 0, 1),
    "fail, both": ("fail", [DISPATCHED, UNKNOWN, DISPATCHED], 2, 1),
}


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize(
    ("name", "completions", "dispatched", "unknown"), UNTIMELY.values(), ids=UNTIMELY.keys()
)
def test_an_instruction_ends_as_its_items_have_ended(
    executor: Service,
    received: InstructionRecord,
    name: str,
    completions: list[Completion],
    dispatched: int,
    unknown: int,
) -> None:
    executing = reach(executor, received, EXECUTING)
    for number in range(len(completions)):
        executor.enqueue(executing, f"k{number}")
    for completion in completions:
        executor.attempt(completion)
    with pytest.raises(errors.InstructionStateForbids) as raised, executor.session.begin_nested():
        ACTS[name](executor.instructions, executing.id, executing.version)
    assert_refused(
        raised.value,
        sqlstate="P7404",
        invariant="INV-INS-006",
        column="state",
        detail={
            "id": str(executing.id),
            "from": "EXECUTING",
            "to": LEADS_TO[name].value,
            "sent": dispatched,
            "unknown": unknown,
        },
        retry=Retry.AFTER_RESOLUTION,
    )
    assert executor.instructions.get(executing.id) == executing
    if not unknown:
        # The other end is accepted.
        other = executor.complete if name == "fail" else executor.fail
        assert other(executing).version == executing.version + 1


@pytest.mark.invariant("INV-INS-006")
def test_one_dispatched_item_completes_whatever_became_of_the_others(
    executor: Service, received: InstructionRecord
) -> None:
    executing = reach(executor, received, EXECUTING)
    for number in range(3):
        executor.enqueue(executing, f"k{number}")
    for completion in (UNKNOWN, DISPATCHED, REJECTED):
        executor.attempt(completion)
    assert executor.complete(executing).state is COMPLETED


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("keep", [True, False], ids=["committed", "rolled back"])
@pytest.mark.parametrize(
    ("name", "completion"), [("complete", DISPATCHED), ("fail", REJECTED)], ids=["complete", "fail"]
)
def test_the_last_item_and_its_instruction_end_in_one_transaction(
    executor: Service,
    received: InstructionRecord,
    name: str,
    completion: Completion,
    keep: bool,
) -> None:
    executing = reach(executor, received, EXECUTING)
    executor.enqueue(executing)
    (claimed,) = executor.outbox.claim("w", batch_size=1, lease=MINUTE)
    executor.session.commit()
    executor.outbox.complete(claimed, completion)
    ended = ACTS[name](executor.instructions, executing.id, executing.version)
    assert ended.state is LEADS_TO[name]
    if keep:
        executor.session.commit()
        assert executor.instructions.get(executing.id) == ended
    else:
        executor.session.rollback()
        assert executor.instructions.get(executing.id) == executing
        executor.session.commit()
        executor.outbox.complete(claimed, completion)
        executor.session.commit()


# Inputs that never reach the database.

KEYS = (
    "participant_id",
    "idempotency_key",
    "instruction_type",
    "end_to_end_id",
    "debtor_account",
    "creditor_account",
    "policy_version_id",
)
BAD: list[tuple[str, Any]] = [
    *(
        (field, value)
        for field in KEYS
        for value in ("", "a\x00b", "\x00", "\ud800", "k\udfff", "k" * 1001, 7, None, b"k")
    ),
    *(("amount_minor", value) for value in (0, -1, True, 2**63, 1.5, 1.0, "1", None)),
    *(("currency", value) for value in ("eur", "EU", "EURO", "", "EUR\n", "E\x00R", "ÉUR", 978)),
    *(
        ("payload", value)
        for value in (
            *([], "{}", None, 1, {"k": float("nan")}, {"k": "\x00"}, {"\ud800": 1}, {1: 1}),
            {"k": {1}},
            {"k": 2**5000},
        )
    ),
    *(("value_date", value) for value in (date(9999, 1, 1), date.max, "soon", "2026-02-30")),
    *(("uetr", value) for value in ("", "no uuid", "\x00", 5, UETR.hex[:-1])),
    *(("attestation_id", value) for value in ("", "no uuid", 5, None)),
]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{number}")
        for number, (field, value) in enumerate(BAD)
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_field(new: New, field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        new(**{field: value})
    assert [error["loc"] for error in raised.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "field", ["id", "state", "version", "reason", "payload_hash", "created_at", "db_user", "open"]
)
def test_what_the_database_sets_is_not_taken(new: New, field: str) -> None:
    with pytest.raises(ValidationError):
        new(**{field: "x"})


def test_an_input_does_not_change(new: New) -> None:
    asked = new()
    with pytest.raises(ValidationError):
        asked.amount_minor = 1


@pytest.mark.parametrize("value", [float("nan"), "\0", "\ud800", {1}], ids=ascii)
def test_a_payload_changed_after_it_was_checked_is_checked_again(
    ingest: Service, new: New, value: object
) -> None:
    changed = new()
    changed.payload["added"] = value
    with pytest.raises(ValidationError) as raised:
        ingest.instructions.receive_many([new("k1"), changed])
    assert [error["loc"] for error in raised.value.errors()] == [("news", 1, "payload")]


NO_IDS: list[Any] = [5, None, "x", "\0"]
NO_VERSIONS: list[Any] = [True, 0, -1, "1", 1.0, 2**31, None]
WRONG: dict[str, tuple[str, Callable[[InstructionRepository, Any], object], list[Any]]] = {
    "receive": ("new", lambda i, v: i.receive(v), [None, {}, 5]),
    "receive_many": ("news", lambda i, v: i.receive_many(v), [None, {}, "abc", 5, [None], [{}]]),
    "get": ("id", lambda i, v: i.get(v), NO_IDS),
    "history": ("id", lambda i, v: i.history(v), NO_IDS),
    "authorize id": ("id", lambda i, v: i.authorize(v, version=1), NO_IDS),
    "start_execution id": ("id", lambda i, v: i.start_execution(v, version=1), NO_IDS),
    "complete id": ("id", lambda i, v: i.complete(v, version=1), NO_IDS),
    "fail id": ("id", lambda i, v: i.fail(v, version=1, reason="r"), NO_IDS),
    "authorize version": ("version", lambda i, v: i.authorize(NOWHERE, version=v), NO_VERSIONS),
    "start_execution version": (
        "version",
        lambda i, v: i.start_execution(NOWHERE, version=v),
        NO_VERSIONS,
    ),
    "complete version": ("version", lambda i, v: i.complete(NOWHERE, version=v), NO_VERSIONS),
    "fail version": (
        "version",
        lambda i, v: i.fail(NOWHERE, version=v, reason="r"),
        NO_VERSIONS,
    ),
    "fail reason": (
        "reason",
        lambda i, v: i.fail(NOWHERE, version=1, reason=v),
        ["", "\0", "\ud800", None, 5],
    ),
}


@pytest.mark.parametrize(
    ("name", "act", "value"),
    [
        pytest.param(name, act, value, id=f"{title}-{number}")
        for title, (name, act, values) in WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_the_session_goes_on(
    session: Sessions,
    name: str,
    act: Callable[[InstructionRepository, Any], object],
    value: Any,
) -> None:
    used = session("executor")
    with pytest.raises((TypeError, ValidationError)) as raised:
        act(InstructionRepository(used), value)
    if isinstance(raised.value, ValidationError):
        for error in raised.value.errors(include_url=False):
            assert error["loc"][0] == name
            assert error["input"] is None
    else:
        assert str(raised.value).startswith((f"{name}: expected ", f"{name}["))
    assert used.scalar(text("SELECT 1")) == 1


def test_an_id_may_be_given_as_text(executor: Service, received: InstructionRecord) -> None:
    written: Any = str(received.id)
    assert executor.instructions.get(written) == received


# Roles.

BY_ROLE: dict[str, tuple[Callable[[InstructionRepository, InstructionRecord], object], set[str]]]
BY_ROLE = {
    "receive_many": (lambda i, _: i.receive_many([]), {"ingest"}),
    "authorize": (lambda i, one: i.authorize(one.id, version=1), {"executor"}),
    "start_execution": (lambda i, one: i.start_execution(one.id, version=2), {"executor"}),
    "complete": (lambda i, one: i.complete(one.id, version=3), {"executor"}),
    "fail": (lambda i, one: i.fail(one.id, version=1, reason="r"), {"executor"}),
    "get": (lambda i, one: i.get(one.id), set(RUNTIME_ROLES)),
    "history": (
        lambda i, one: i.history(one.id),
        {"executor", "control", "readonly", "auditor"},
    ),
}
STANDS = {"start_execution": AUTHORIZED, "complete": EXECUTING}


@pytest.mark.parametrize("name", BY_ROLE)
@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_each_role_does_its_own_acts_and_no_other(
    session: Sessions,
    executor: Service,
    received: InstructionRecord,
    role: str,
    name: str,
) -> None:
    stands = reach(executor, received, STANDS.get(name, RECEIVED))
    if name == "complete":
        executor.enqueue(stands)
        executor.attempt(DISPATCHED)
    act, allowed = BY_ROLE[name]
    repository = InstructionRepository(session(role))
    if role in allowed:
        act(repository, stands)
        return
    with pytest.raises(errors.InsufficientPrivilege) as raised:
        act(repository, stands)
    error = raised.value
    assert (error.sqlstate, error.invariant, error.retry) == ("42501", None, Retry.NEVER)
    assert isinstance(error.__cause__, psycopg.Error)


# The caller's transaction.


def test_a_repository_never_commits(
    ingest: Service, engine: Callable[[str], Engine], new: New, owner: Connect
) -> None:
    ends: list[str] = []
    event.listen(engine("ingest"), "commit", lambda _: ends.append("commit"))
    event.listen(engine("ingest"), "rollback", lambda _: ends.append("rollback"))
    ingest.session.rollback()
    ends.clear()
    made = ingest.instructions.receive(new())
    assert ingest.instructions.get(made.id) == made
    assert ends == []
    assert count(owner) == 0
    ingest.session.rollback()
    assert ends == ["rollback"]
    assert ingest.instructions.get(made.id) is None


@pytest.mark.invariant("INV-INS-004")
def test_a_transition_is_rolled_back_with_its_history(
    executor: Service, received: InstructionRecord
) -> None:
    executor.instructions.authorize(received.id, version=1)
    executor.session.rollback()
    assert executor.instructions.get(received.id) == received
    assert [one.version for one in executor.instructions.history(received.id)] == [1]


@pytest.mark.invariant("INV-INS-001", "INV-INS-004")
def test_several_transitions_are_one_transaction(
    executor: Service, received: InstructionRecord
) -> None:
    executor.instructions.authorize(received.id, version=1)
    executor.instructions.start_execution(received.id, version=2)
    failed = executor.instructions.fail(received.id, version=3, reason="r")
    executor.session.commit()
    history = executor.instructions.history(received.id)
    assert [one.to_state for one in history] == [RECEIVED, AUTHORIZED, EXECUTING, FAILED]
    times = [one.occurred_at for one in history]
    assert times == sorted(set(times))
    assert times[-1] == failed.completed_at


def test_records_outlive_their_session_and_do_not_change(session: Sessions, new: New) -> None:
    with session("ingest") as one:
        made = InstructionRepository(one).receive(new())
        one.commit()
        one.expire_all()
    assert made.state is RECEIVED
    with session("auditor") as one:
        (transition,) = InstructionRepository(one).history(made.id)
    with pytest.raises(ValidationError):
        made.version = 2
    with pytest.raises(ValidationError):
        transition.version = 2


def test_without_a_savepoint_a_refusal_fails_the_transaction(
    executor: Service, received: InstructionRecord
) -> None:
    with pytest.raises(errors.StaleInstruction):
        executor.instructions.authorize(received.id, version=9)
    with pytest.raises(errors.FailedTransaction):
        executor.instructions.get(received.id)
