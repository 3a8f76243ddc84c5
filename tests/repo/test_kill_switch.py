"""KillSwitchRepository as the services use it, and the errors of the calls that a switch stops."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import (
    Completion,
    GateHolder,
    KillSwitchRecord,
    KillSwitchState,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
)
from orchestration.repo import (
    AttestationRepository,
    InstructionRepository,
    KillSwitchRepository,
    OutboxRepository,
)
from orchestration.vocabulary import (
    CompletionState,
    InstructionState,
    KillSwitchAction,
    KillSwitchScope,
)
from tests.support import Connect, digest, instruction_id, scalar

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")
MINUTE = timedelta(minutes=1)
TARGETED = (KillSwitchScope.PARTICIPANT, KillSwitchScope.RAIL)
AUTHORIZED = instruction_id("p", 0)

SWITCHES = [(scope, "p" if scope in TARGETED else None) for scope in KillSwitchScope]

each_switch = pytest.mark.parametrize(("scope", "target"), SWITCHES)


def engage(
    switches: KillSwitchRepository, scope: Any = "GLOBAL", target: Any = None, **changed: Any
) -> KillSwitchRecord:
    given = {"reason": "fraud", "engaged_by": "ops@example.com"} | changed
    return switches.engage(scope=scope, target=target, **given)


def release(
    switches: KillSwitchRepository, scope: Any = "GLOBAL", target: Any = None, **changed: Any
) -> KillSwitchRecord:
    given = {"reason": "over", "released_by": "lead@example.com"} | changed
    return switches.release(scope=scope, target=target, **given)


@pytest.fixture
def control(session: Sessions) -> KillSwitchRepository:
    return KillSwitchRepository(session("control"))


def count(connection: Connect) -> int:
    return int(scalar(connection, "SELECT count(*) FROM orchestration.kill_switches"))


# Engaging and releasing.


@pytest.mark.invariant("INV-KIL-001")
@each_switch
def test_an_event_is_returned_as_it_was_stored_and_the_state_shows_the_last(
    control: KillSwitchRepository, scope: KillSwitchScope, target: str | None
) -> None:
    engaged = engage(control, scope, target)
    assert engaged == KillSwitchRecord(
        event_no=1,
        scope=scope,
        target=target,
        action=KillSwitchAction.ENGAGE,
        reason="fraud",
        actor="ops@example.com",
        occurred_at=engaged.occurred_at,
        db_user=engaged.db_user,
    )
    assert engaged.occurred_at.tzinfo is not None
    assert engaged.db_user.endswith("_control")
    assert engaged.scope is scope
    assert control.state() == [
        KillSwitchState(
            scope=scope,
            target=target,
            engaged=True,
            reason="fraud",
            actor="ops@example.com",
            occurred_at=engaged.occurred_at,
            db_user=engaged.db_user,
        )
    ]
    released = release(control, scope, target)
    assert (released.event_no, released.action) == (2, KillSwitchAction.RELEASE)
    assert released.occurred_at > engaged.occurred_at
    (state,) = control.state()
    assert (state.engaged, state.reason, state.actor) == (False, "over", "lead@example.com")
    assert state.occurred_at == released.occurred_at


def test_a_scope_may_be_a_word_or_its_name(control: KillSwitchRepository) -> None:
    for scope, target in SWITCHES:
        assert engage(control, str(scope), target).scope is scope
        assert release(control, scope, target).scope is scope


def test_nothing_was_ever_engaged(control: KillSwitchRepository) -> None:
    assert control.state() == []


@pytest.mark.invariant("INV-KIL-001")
def test_the_state_is_in_order(control: KillSwitchRepository) -> None:
    for scope, target in (
        ("RAIL", "b"),
        ("PARTICIPANT", "p"),
        ("GLOBAL", None),
        ("RAIL", "a"),
        ("INGEST", None),
    ):
        engage(control, scope, target)
    release(control, "PARTICIPANT", "p")
    assert [(one.scope, one.target, one.engaged) for one in control.state()] == [
        ("GLOBAL", None, True),
        ("INGEST", None, True),
        ("PARTICIPANT", "p", False),
        ("RAIL", "a", True),
        ("RAIL", "b", True),
    ]


@pytest.mark.invariant("INV-API-002")
@each_switch
def test_what_is_not_engaged_is_not_released(
    session: Sessions, scope: KillSwitchScope, target: str | None
) -> None:
    with session("control") as one:
        switches = KillSwitchRepository(one)
        for _ in range(2):
            with pytest.raises(errors.NotFound) as raised, one.begin_nested():
                release(switches, scope, target)
            error = raised.value
            assert (error.sqlstate, error.invariant, error.table, error.column) == (
                *("P0002", "INV-API-002", "kill_switches", "scope"),
            )
            assert error.detail == {"scope": scope, "target": target}
            assert error.retry is Retry.NEVER
            engage(switches, scope, target)
            release(switches, scope, target)


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize(
    ("scope", "target"),
    [
        *((scope, "p") for scope in KillSwitchScope if scope not in TARGETED),
        *((scope, None) for scope in TARGETED),
    ],
)
def test_a_target_that_the_scope_has_not_or_needs_is_refused(
    control: KillSwitchRepository, scope: KillSwitchScope, target: str | None
) -> None:
    with pytest.raises(errors.CheckViolation) as raised:
        engage(control, scope, target)
    error = raised.value
    assert (error.sqlstate, error.constraint, error.invariant) == (
        *("23514", "ck_kill_switches_scope", "INV-KIL-001"),
    )
    assert (error.schema, error.table) == ("orchestration", "kill_switches")


BAD_TEXT = ("", "a\x00b", "\ud83d", "x\udfff", 12345, b"bytes", ["a"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("scope", value) for value in (*BAD_TEXT, None, "global", "ALL", " GLOBAL")),
        *(("target", value) for value in BAD_TEXT),
        *(("reason", value) for value in (*BAD_TEXT, None)),
        *(("actor", value) for value in (*BAD_TEXT, None)),
    ],
    ids=ascii,
)
def test_bad_input_is_named_and_never_reaches_the_database(
    control: KillSwitchRepository, owner: Connect, name: str, value: object
) -> None:
    for act, by in ((engage, "engaged_by"), (release, "released_by")):
        named = by if name == "actor" else name
        with pytest.raises((TypeError, ValidationError)) as raised:
            act(control, **({"scope": "RAIL", "target": "p"} | {named: value}))
        if isinstance(value, str):
            assert isinstance(raised.value, ValidationError)
            assert [error["loc"] for error in raised.value.errors()] == [(named,)]
        else:
            assert f"{named}: expected a str, got {type(value).__name__}" == str(raised.value)
        if value:
            assert repr(value) not in str(raised.value)
    assert count(owner) == 0


@pytest.mark.parametrize(
    "target", ["'; DROP SCHEMA orchestration; --", "😀", " ", "%s", ":x", "é/"]
)
def test_a_target_is_kept_to_the_letter(control: KillSwitchRepository, target: str) -> None:
    assert engage(control, "PARTICIPANT", target, reason=target).target == target
    (state,) = control.state()
    assert (state.target, state.reason) == (target, target)
    release(control, "PARTICIPANT", target)


# Roles.


@pytest.mark.parametrize("role", [role for role in RUNTIME_ROLES if role != "control"])
def test_only_control_changes_a_switch(session: Sessions, role: str) -> None:
    for act in (engage, release):
        with session(role) as one, pytest.raises(errors.InsufficientPrivilege) as raised:
            act(KillSwitchRepository(one))
        error: OrchestrationError = raised.value
        assert (error.sqlstate, error.invariant, error.retry) == ("42501", None, Retry.NEVER)


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_everyone_reads_the_state(
    session: Sessions, control: KillSwitchRepository, role: str
) -> None:
    engage(control, "RAIL", "SEPA")
    control._session.commit()
    assert KillSwitchRepository(session(role)).state() == control.state()


# Calls that a switch stops.


def attestation(key: str = "k") -> NewAttestation:
    return NewAttestation(
        caller_identity="alice",
        idempotency_key=key,
        payload_hash=digest(key),
        policy_version_id="instructions",
    )


def instruction(attestation_id: UUID, key: str = "k") -> NewInstruction:
    return NewInstruction(
        participant_id="p",
        idempotency_key=key,
        instruction_type="pain.001",
        end_to_end_id=key,
        amount_minor=100,
        currency="EUR",
        debtor_account="debtor",
        creditor_account="creditor",
        payload={"key": key},
        attestation_id=attestation_id,
        policy_version_id="instructions",
    )


def item(key: str = "k") -> NewOutboxItem:
    return NewOutboxItem(
        instruction_id=AUTHORIZED,
        participant_id="p",
        idempotency_key=key,
        rail_type="SEPA",
        payload={"key": key},
    )


@pytest.fixture
def received(session: Sessions) -> UUID:
    """Create an instruction to authorize, and an item of another instruction to claim."""
    with session("ingest") as one:
        attested = AttestationRepository(one).append(attestation("before"))
        made = InstructionRepository(one).receive(instruction(attested.id, "before"))
        one.commit()
    with session("executor") as one:
        OutboxRepository(one).enqueue(item("before"))
        one.commit()
    return made.id


def attested_id(one: Session) -> UUID:
    """A replay is answered whichever switch is engaged."""
    return AttestationRepository(one).append(attestation("before")).id


Act = Callable[[Session, UUID], object]

GATED: dict[str, tuple[str, Act, set[str]]] = {
    "append": (
        "ingest",
        lambda one, _: AttestationRepository(one).append(attestation()),
        {"GLOBAL", "INGEST"},
    ),
    "receive": (
        "ingest",
        lambda one, _: InstructionRepository(one).receive(instruction(attested_id(one))),
        {"GLOBAL", "INGEST", "PARTICIPANT"},
    ),
    "enqueue": (
        "executor",
        lambda one, _: OutboxRepository(one).enqueue(item()),
        {"GLOBAL", "INGEST", "PARTICIPANT"},
    ),
    "authorize": (
        "executor",
        lambda one, id: InstructionRepository(one).authorize(id, version=1),
        {"GLOBAL", "EXECUTION", "PARTICIPANT"},
    ),
    "start_execution": (
        "executor",
        lambda one, _: InstructionRepository(one).start_execution(AUTHORIZED, version=2),
        {"GLOBAL", "EXECUTION", "PARTICIPANT"},
    ),
    "claim": (
        "executor",
        lambda one, _: OutboxRepository(one).claim("w", batch_size=1, lease=MINUTE),
        {"GLOBAL", "DISPATCH"},
    ),
}


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("act", GATED)
@each_switch
def test_a_call_that_a_switch_stops_is_refused_and_can_be_repeated(
    session: Sessions,
    control: KillSwitchRepository,
    received: UUID,
    act: str,
    scope: KillSwitchScope,
    target: str | None,
) -> None:
    role, perform, stopped_by = GATED[act]
    engage(control, scope, target)
    control._session.commit()
    with session(role) as one:
        if scope not in stopped_by:
            perform(one, received)
            return
        with pytest.raises(errors.KillSwitchEngaged) as raised, one.begin_nested():
            perform(one, received)
        error = raised.value
        assert (error.sqlstate, error.invariant, error.constraint) == (
            *("P7501", "INV-KIL-001", "INV-KIL-001"),
        )
        assert (error.schema, error.table, error.column) == (
            *("orchestration", "kill_switches", "scope"),
        )
        assert error.detail == {"scope": scope, "target": target, "reason": "fraud"}
        assert error.hint
        assert error.retry is Retry.AFTER_RESOLUTION
        assert isinstance(error.__cause__, psycopg.Error)
        one.rollback()

        release(control, scope, target)
        control._session.commit()
        perform(one, received)


@pytest.mark.invariant("INV-KIL-001")
def test_a_claim_leaves_out_a_stopped_participant_and_a_stopped_rail(
    session: Sessions, control: KillSwitchRepository, received: UUID
) -> None:
    outbox = OutboxRepository(session("executor"))
    for scope, target in (("PARTICIPANT", "p"), ("RAIL", "SEPA")):
        engage(control, scope, target)
        control._session.commit()
        assert outbox.claim("w", batch_size=9, lease=MINUTE) == []
        outbox._session.commit()
        release(control, scope, target)
        control._session.commit()
    assert len(outbox.claim("w", batch_size=9, lease=MINUTE)) == 1


@pytest.mark.invariant("INV-KIL-001")
def test_started_work_ends_and_a_replay_is_answered_under_every_switch(
    session: Sessions, control: KillSwitchRepository, received: UUID
) -> None:
    with session("executor") as one:
        instructions, outbox = InstructionRepository(one), OutboxRepository(one)
        (claimed,) = outbox.claim("w", batch_size=1, lease=MINUTE)
        started = instructions.start_execution(AUTHORIZED, version=2)
        one.commit()
        for scope in KillSwitchScope:
            engage(control, scope, "p" if scope in TARGETED else None)
        engage(control, "RAIL", "SEPA")
        control._session.commit()
        assert {one.scope for one in control.state() if one.engaged} == {*KillSwitchScope}

        claimed = outbox.renew(claimed, lease=MINUTE)
        outbox.complete(claimed, Completion(state=CompletionState.DISPATCHED))
        completed = instructions.complete(AUTHORIZED, version=started.version)
        assert completed.state is InstructionState.COMPLETED
        failed = instructions.fail(received, version=1, reason="stopped")
        assert failed.state is InstructionState.FAILED
        one.commit()
    with session("ingest") as one:
        attested = AttestationRepository(one).append(attestation("before"))
        again = InstructionRepository(one).receive(instruction(attested.id, "before"))
        assert (again.id, again.state) == (received, InstructionState.FAILED)
    with session("executor") as one:
        assert OutboxRepository(one).enqueue(item("before")).outbox_id == claimed.outbox_id


# The caller's transaction.


def test_a_repository_never_commits(
    session: Sessions, engine: Callable[[str], Engine], owner: Connect
) -> None:
    ends: list[str] = []
    event.listen(engine("control"), "commit", lambda _: ends.append("commit"))
    event.listen(engine("control"), "rollback", lambda _: ends.append("rollback"))
    with session("control") as one:
        switches = KillSwitchRepository(one)
        engage(switches)
        release(switches)
        switches.state()
        assert ends == []
        assert count(owner) == 0
        one.rollback()
    assert ends == ["rollback"]
    assert count(owner) == 0


def test_a_record_outlives_its_session_and_does_not_change(session: Sessions) -> None:
    with session("control") as one:
        switches = KillSwitchRepository(one)
        made = engage(switches)
        (state,) = switches.state()
        one.commit()
        one.expire_all()
    assert (type(made), type(state)) == (KillSwitchRecord, KillSwitchState)
    with pytest.raises(ValidationError):
        made.reason = "other"
    with pytest.raises(ValidationError):
        state.engaged = False


# Gates.


def test_the_holders_of_a_gate_are_records(session: Sessions) -> None:
    with session("ingest") as writer, session("readonly") as reader:
        AttestationRepository(writer).append(attestation("held"))
        holders = KillSwitchRepository(reader).gate_holders()
        assert {holder.gate: (holder.mode, holder.granted) for holder in holders} == dict.fromkeys(
            ("kill_switch_gate", "policy_gate", "revocation_gate"), ("RowShareLock", True)
        )
        (one, *_) = holders
        assert type(one) is GateHolder
        assert one.pid == writer.scalar(text("SELECT pg_backend_pid()"))
        assert one.login == writer.scalar(text("SELECT session_user"))
        assert one.transaction_started_at is None
        with pytest.raises(ValidationError):
            one.pid = None


def test_a_change_that_gives_up_raises_an_error_with_the_holders_of_the_gate(
    session: Sessions, control: KillSwitchRepository
) -> None:
    engage(control, "RAIL", "SEPA")
    control._session.commit()
    with session("ingest") as writer:
        AttestationRepository(writer).append(attestation("held"))
        pid = writer.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(errors.LockNotAvailable) as raised:
            release(control, "RAIL", "SEPA")
    assert raised.value.retry is Retry.SAFE
    assert raised.value.invariant == "INV-KIL-002"
    assert raised.value.detail is not None
    assert [holder["pid"] for holder in raised.value.detail["holders"]] == [pid]
