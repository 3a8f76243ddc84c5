"""From UNKNOWN to an end: late results, resolutions, contradictions, and what control does with an
item.

Each call is one transaction, as in the services.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import Retry
from orchestration.records import (
    ClaimedItem,
    Completion,
    InstructionRecord,
    NewOutboxItem,
    OutboxItemRecord,
)
from orchestration.repo import (
    AuditLogRepository,
    InstructionRepository,
    KillSwitchRepository,
    OutboxRepository,
)
from orchestration.vocabulary import (
    CompletionState,
    Contradiction,
    InstructionState,
    Intervention,
    ItemState,
    KnownOutcome,
    LateOutcome,
    LateSource,
    Outcome,
)
from tests.support import Connect, assert_invariant, new_instruction_id, refusal

Login = Callable[[str], Connect]

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

REASON = "the rail's statement of the day"
DISPATCHED = Completion(state=CompletionState.DISPATCHED)
UNKNOWN = Completion(state=CompletionState.FAILED, outcome=Outcome.UNKNOWN, error_code="TIMEOUT")
REJECTED = Completion(state=CompletionState.FAILED, outcome=Outcome.REJECTED)
RECONCILE = "SELECT FROM orchestration.record_late_result(%s, %s, 'NOT_SENT', p_reason => 'found')"


class Desk:
    """A worker and a controller that commit after each call, and one instruction."""

    def __init__(self, session: Sessions) -> None:
        self.executor = session("executor")
        self.control = session("control")
        self.instruction_id = new_instruction_id()
        self.work = OutboxRepository(self.executor)
        self.govern = OutboxRepository(self.control)

    def commit(self) -> None:
        self.executor.commit()
        self.control.commit()

    def enqueue(self, key: str = "k", **changed: Any) -> OutboxItemRecord:
        made = self.work.enqueue(
            NewOutboxItem(
                **{
                    "instruction_id": self.instruction_id,
                    "participant_id": "bank-a",
                    "idempotency_key": key,
                    "rail_type": "SEPA",
                    "payload": {"amount": 100},
                }
                | changed
            )
        )
        self.commit()
        return made

    def claim(self) -> ClaimedItem:
        (claimed,) = self.work.claim("w", batch_size=1, lease=timedelta(minutes=1))
        self.commit()
        return claimed

    def ended(self, completion: Completion, key: str = "k") -> ClaimedItem:
        self.enqueue(key)
        claimed = self.claim()
        self.work.complete(claimed, completion)
        self.commit()
        return claimed

    def late(self, item: ClaimedItem, outcome: LateOutcome) -> int:
        recorded = self.work.record_late_result(item, outcome=outcome)
        self.commit()
        return recorded.result_no

    def resolve(self, outbox_id: UUID, outcome: LateOutcome, reason: str = REASON) -> int:
        recorded = self.govern.resolve(outbox_id, outcome=outcome, reason=reason)
        self.commit()
        return recorded.result_no

    def redrive(self, outbox_id: UUID) -> OutboxItemRecord:
        made = self.govern.redrive(outbox_id)
        self.commit()
        return made

    def known(self, outbox_id: UUID) -> KnownOutcome | None:
        status = self.work.get(outbox_id)
        assert status is not None
        return status.known_outcome

    def instruction(self) -> InstructionRecord:
        found = InstructionRepository(self.executor).get(self.instruction_id)
        assert found is not None
        return found

    def end(self, state: InstructionState) -> InstructionState:
        instructions = InstructionRepository(self.executor)
        at = self.instruction()
        try:
            if state is InstructionState.FAILED:
                ended = instructions.fail(at.id, version=at.version, reason="not paid")
            else:
                if at.state is InstructionState.AUTHORIZED:
                    at = instructions.start_execution(at.id, version=at.version)
                ended = instructions.complete(at.id, version=at.version)
        except errors.OrchestrationError:
            self.executor.rollback()
            raise
        self.commit()
        return ended.state

    def refused(self, act: Callable[[], object]) -> errors.OrchestrationError:
        with pytest.raises(errors.OrchestrationError) as caught:
            act()
        self.executor.rollback()
        self.control.rollback()
        return caught.value

    def instruction_is_stopped(self) -> bool:
        """Return whether the instruction rejects a second item."""
        error = self.refused(lambda: self.enqueue("another"))
        return (error.sqlstate, error.invariant) == ("P7404", "INV-OUT-010")

    def contradictions(self) -> list[tuple[UUID, int, Contradiction]]:
        found = self.govern.contradictions()
        self.commit()
        return [(one.outbox_id, one.result_no, one.contradicts) for one in found]


@pytest.fixture
def desk(session: Sessions) -> Desk:
    return Desk(session)


@pytest.fixture(autouse=True)
def nothing_is_wrong_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT * FROM orchestration.verify_outbox()").fetchall() == []
    report = owner.execute("SELECT ok, break_reason FROM orchestration.verify_audit_log()")
    assert report.fetchall() == [(True, None)]


def expire(owner: Connect) -> None:
    owner.execute(
        "UPDATE orchestration.payment_outbox_pending"
        " SET lease_expires_at = clock_timestamp() - interval '1 second'"
    )


def acts(owner: Connect) -> list[str]:
    return [
        action
        for (action,) in owner.execute(
            "SELECT action FROM orchestration.audit_log WHERE table_name LIKE 'payment_outbox%'"
            " ORDER BY chain_seq"
        )
    ]


def by_completion(desk: Desk, _owner: Connect) -> UUID:
    return desk.ended(UNKNOWN).outbox_id


def by_retry_at_the_ceiling(desk: Desk, _owner: Connect) -> UUID:
    desk.enqueue(max_attempts=1)
    claimed = desk.claim()
    desk.work.complete(claimed, Completion(state=CompletionState.RETRYABLE))
    desk.commit()
    return claimed.outbox_id


def by_repair(desk: Desk, owner: Connect) -> UUID:
    made = desk.enqueue(max_attempts=1)
    desk.claim()
    expire(owner)
    desk.work.repair_expired(limit=10)
    desk.commit()
    return made.outbox_id


def by_claim(desk: Desk, owner: Connect) -> UUID:
    made = desk.enqueue(max_attempts=1)
    desk.claim()
    expire(owner)
    desk.work.claim("w", batch_size=1, lease=timedelta(minutes=1))
    desk.commit()
    return made.outbox_id


def by_cancellation(desk: Desk, owner: Connect) -> UUID:
    made = desk.enqueue()
    desk.claim()
    expire(owner)
    desk.work.repair_expired(limit=10)
    desk.commit()
    desk.govern.cancel(made.outbox_id, reason="the customer asked")
    desk.commit()
    return made.outbox_id


WAYS_TO_UNKNOWN = [by_completion, by_retry_at_the_ceiling, by_repair, by_claim, by_cancellation]


@pytest.mark.invariant("INV-OUT-010", "INV-INS-006", "INV-OUT-006")
@pytest.mark.parametrize("way", WAYS_TO_UNKNOWN, ids=lambda way: way.__name__)
def test_an_unknown_outcome_stops_its_instruction_until_it_is_resolved(
    desk: Desk, owner: Connect, way: Callable[[Desk, Connect], UUID]
) -> None:
    outbox_id = way(desk, owner)

    (unresolved,) = desk.work.unresolved()
    assert (unresolved.outbox_id, unresolved.instruction_id) == (outbox_id, desk.instruction_id)
    assert (unresolved.participant_id, unresolved.rail_type) == ("bank-a", "SEPA")
    assert (unresolved.amount_minor, unresolved.currency) == (100, "EUR")
    assert unresolved.since <= datetime.now(UTC)
    assert desk.known(outbox_id) is KnownOutcome.UNKNOWN

    second = desk.refused(lambda: desk.enqueue("another key"))
    assert isinstance(second, errors.InstructionStateForbids)
    assert (second.sqlstate, second.invariant, second.column) == (
        *("P7404", "INV-OUT-010", "unresolved"),
    )
    assert second.retry is Retry.AFTER_RESOLUTION
    assert (second.detail or {})["id"] == str(desk.instruction_id)
    assert desk.enqueue().outbox_id == outbox_id, "a replay is answered"
    for state in (InstructionState.FAILED, InstructionState.COMPLETED):
        assert desk.refused(lambda s=state: desk.end(s)).invariant == "INV-INS-006"
    assert desk.refused(lambda: desk.redrive(outbox_id)).invariant == "INV-OUT-006"

    desk.resolve(outbox_id, LateOutcome.NOT_SENT)
    assert desk.work.unresolved() == []
    assert desk.known(outbox_id) is KnownOutcome.NOT_SENT
    assert not desk.enqueue("another key").replayed


@pytest.mark.invariant("INV-INS-006", "INV-AUD-001")
def test_resolved_as_sent_the_instruction_completes_and_nothing_else(
    desk: Desk, owner: Connect
) -> None:
    outbox_id = desk.ended(UNKNOWN).outbox_id
    recorded = desk.govern.resolve(
        outbox_id, outcome=LateOutcome.SENT, reason=REASON, by="ann", rail_reference="R-1"
    )
    desk.commit()
    assert (recorded.source, recorded.outcome) == (LateSource.RECONCILIATION, LateOutcome.SENT)
    assert (recorded.reason, recorded.recorded_by) == (REASON, "ann")
    assert (recorded.rail_reference, recorded.result_no, recorded.attempt_no) == ("R-1", 1, 1)
    assert not recorded.replayed
    assert desk.known(outbox_id) is KnownOutcome.SENT
    assert desk.refused(lambda: desk.redrive(outbox_id)).sqlstate == "P7005"
    assert desk.refused(lambda: desk.end(InstructionState.FAILED)).sqlstate == "P7404"
    assert desk.end(InstructionState.COMPLETED) is InstructionState.COMPLETED
    assert acts(owner) == ["RESOLVE"]


@pytest.mark.invariant("INV-OUT-006")
@pytest.mark.parametrize("outcome", [LateOutcome.REJECTED, LateOutcome.NOT_SENT])
def test_resolved_as_not_made_the_payment_is_redriven(desk: Desk, outcome: LateOutcome) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, outcome)
    made = desk.redrive(item.outbox_id)
    assert (made.redrive_of, made.redrive_no, made.replayed) == (item.outbox_id, 1, False)
    assert desk.redrive(item.outbox_id).replayed
    desk.work.complete(desk.claim(), DISPATCHED)
    desk.commit()
    assert desk.end(InstructionState.COMPLETED) is InstructionState.COMPLETED
    assert desk.contradictions() == []


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize("outcome", [LateOutcome.REJECTED, LateOutcome.NOT_SENT])
def test_resolved_as_not_made_the_instruction_fails(desk: Desk, outcome: LateOutcome) -> None:
    desk.resolve(desk.ended(UNKNOWN).outbox_id, outcome)
    assert desk.refused(lambda: desk.end(InstructionState.COMPLETED)).sqlstate == "P7404"
    assert desk.end(InstructionState.FAILED) is InstructionState.FAILED


@pytest.mark.invariant("INV-OUT-010")
def test_a_redrive_waits_for_another_item_whose_outcome_is_unknown(desk: Desk) -> None:
    rejected = desk.ended(REJECTED, "first")
    unknown = desk.ended(UNKNOWN, "second")
    assert desk.refused(lambda: desk.redrive(rejected.outbox_id)).invariant == "INV-OUT-010"
    desk.resolve(unknown.outbox_id, LateOutcome.REJECTED)
    assert desk.redrive(rejected.outbox_id).redrive_of == rejected.outbox_id


@pytest.mark.invariant("INV-OUT-011")
def test_the_newest_resolution_counts_and_the_one_it_contradicts_stays(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, LateOutcome.NOT_SENT)
    assert desk.resolve(item.outbox_id, LateOutcome.SENT, "found on the statement") == 2
    assert desk.known(item.outbox_id) is KnownOutcome.SENT
    assert desk.contradictions() == [(item.outbox_id, 2, Contradiction.LATE_RESULT)]
    assert desk.refused(lambda: desk.redrive(item.outbox_id)).sqlstate == "P7005"


@pytest.mark.invariant("INV-OUT-011", "INV-AUD-001")
def test_the_same_resolution_again_is_the_recorded_one(desk: Desk, owner: Connect) -> None:
    item = desk.ended(UNKNOWN)
    first = desk.govern.resolve(item.outbox_id, outcome=LateOutcome.SENT, reason=REASON)
    again = desk.govern.resolve(item.outbox_id, outcome=LateOutcome.SENT, reason=REASON)
    desk.commit()
    assert again == first.model_copy(update={"replayed": True})
    assert acts(owner) == ["RESOLVE"]


@pytest.mark.invariant("INV-OUT-011")
def test_an_item_that_has_not_ended_is_not_resolved(desk: Desk) -> None:
    made = desk.enqueue()
    refused = desk.refused(lambda: desk.resolve(made.outbox_id, LateOutcome.SENT))
    assert (refused.sqlstate, refused.invariant) == ("P7005", "INV-OUT-011")


# Results that the worker gets after its lease is lost.


@pytest.mark.invariant("INV-OUT-010", "INV-OUT-011")
@pytest.mark.parametrize("by", ["the end of the item", "a later attempt"])
def test_a_reconciliation_settles_nothing_that_ends_after_it(
    desk: Desk, login: Login, by: str
) -> None:
    """The open attempt can still send the payment."""
    made = desk.enqueue()
    control = login("control")
    if by == "a later attempt":
        first = desk.claim()
        desk.work.complete(first, Completion(state=CompletionState.RETRYABLE))
        desk.commit()
        control.execute(RECONCILE, (made.outbox_id, 1))
    last = desk.claim()
    found = refusal(control, RECONCILE, (made.outbox_id, last.attempt_no))
    assert_invariant(found, "INV-OUT-011", "P7005", "payment_outbox_late_results")
    desk.work.complete(last, UNKNOWN)
    desk.commit()
    assert desk.known(made.outbox_id) is KnownOutcome.UNKNOWN
    assert desk.instruction_is_stopped()
    control.execute(RECONCILE, (made.outbox_id, last.attempt_no))
    assert desk.known(made.outbox_id) is KnownOutcome.NOT_SENT


@pytest.mark.invariant("INV-OUT-010")
@pytest.mark.parametrize("first", ["RETRYABLE", "ZOMBIE_REQUEUE"])
def test_not_sent_of_the_last_attempt_does_not_apply_to_an_earlier_one(
    desk: Desk, first: str
) -> None:
    made = desk.enqueue()
    claimed = desk.claim()
    if first == "RETRYABLE":
        desk.work.complete(claimed, Completion(state=CompletionState.RETRYABLE))
    else:
        desk.govern.expire_lease(made.outbox_id, reason="the worker is gone")
    desk.commit()
    last = desk.claim()
    desk.work.complete(last, Completion(state=CompletionState.FAILED, outcome=Outcome.NOT_SENT))
    desk.commit()
    assert desk.known(made.outbox_id) is KnownOutcome.UNKNOWN
    assert desk.instruction_is_stopped()


@pytest.mark.invariant("INV-OUT-011")
def test_a_result_number_is_the_next_one(desk: Desk, owner: Connect) -> None:
    item = desk.ended(UNKNOWN)
    found = refusal(
        owner,
        "INSERT INTO orchestration.payment_outbox_late_results"
        " (outbox_id, attempt_no, source, outcome, reason, result_no)"
        " VALUES (%s, 1, 'RECONCILIATION', 'REJECTED', 'forged', 2147483647)",
        (item.outbox_id,),
    )
    assert_invariant(found, "INV-OUT-011", "22023", "payment_outbox_late_results")
    assert (found.column, found.keys["expected"]) == ("result_no", 1)
    assert desk.resolve(item.outbox_id, LateOutcome.REJECTED) == 1


@pytest.mark.invariant("INV-OUT-011")
@pytest.mark.parametrize("closed", [True, False])
def test_a_worker_that_lost_its_lease_records_what_the_rail_answered(
    desk: Desk, owner: Connect, closed: bool
) -> None:
    desk.enqueue(max_attempts=1)
    item = desk.claim()
    expire(owner)
    if closed:
        desk.work.repair_expired(limit=10)
        desk.commit()
    lost = desk.refused(lambda: desk.work.complete(item, DISPATCHED))
    assert isinstance(lost, errors.LeaseLost)
    assert "record_late_result" in (lost.hint or "")

    first = desk.work.record_late_result(item, outcome=LateOutcome.SENT, rail_reference="R-1")
    again = desk.work.record_late_result(item, outcome=LateOutcome.SENT, rail_reference="R-1")
    desk.commit()
    assert (first.source, first.recorded_by, first.attempt_no) == (LateSource.WORKER, "w", 1)
    assert again == first.model_copy(update={"replayed": True})
    if not closed:
        desk.work.repair_expired(limit=10)
        desk.commit()
    (unresolved,) = desk.work.unresolved()
    assert unresolved.reported_outcome is LateOutcome.SENT, "it is told, and resolves nothing"
    assert unresolved.rail_reference == "R-1"
    desk.resolve(item.outbox_id, LateOutcome.SENT)
    assert desk.contradictions() == []
    assert desk.end(InstructionState.COMPLETED) is InstructionState.COMPLETED


@pytest.mark.invariant("INV-OUT-011")
def test_a_late_result_is_the_attempt_s_own_worker_s(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    for changed in (
        {"worker_id": "another"},
        {"lease_token": desk.instruction_id},
        {"attempt_no": 2},
    ):
        other = item.model_copy(update=changed)
        refused = desk.refused(lambda o=other: desk.late(o, LateOutcome.SENT))
        assert (refused.sqlstate, refused.invariant) == ("P7002", "INV-OUT-011")


@pytest.mark.invariant("INV-OUT-011", "INV-OUT-010")
def test_sent_after_rejected_makes_the_outcome_unknown_until_control_resolves_it(
    desk: Desk,
) -> None:
    item = desk.ended(REJECTED)
    assert desk.known(item.outbox_id) is KnownOutcome.REJECTED
    desk.late(item, LateOutcome.SENT)
    assert desk.known(item.outbox_id) is KnownOutcome.UNKNOWN
    assert desk.contradictions() == [(item.outbox_id, 1, Contradiction.ATTEMPT)]
    assert [one.outbox_id for one in desk.work.unresolved()] == [item.outbox_id]
    assert desk.refused(lambda: desk.redrive(item.outbox_id)).sqlstate == "P7005"
    assert desk.refused(lambda: desk.enqueue("another")).invariant == "INV-OUT-010"
    assert desk.refused(lambda: desk.end(InstructionState.FAILED)).sqlstate == "P7404"
    desk.resolve(item.outbox_id, LateOutcome.REJECTED)
    assert desk.redrive(item.outbox_id).redrive_no == 1


@pytest.mark.invariant("INV-OUT-011")
def test_what_an_earlier_attempt_sent_contradicts_the_end_of_the_item(
    desk: Desk, owner: Connect
) -> None:
    desk.enqueue()
    first = desk.claim()
    expire(owner)
    second = desk.claim()
    assert second.attempt_no == 2
    desk.late(first, LateOutcome.SENT)
    assert desk.contradictions() == [], "the rail knows the key: a second call of it is no second"
    desk.work.complete(second, REJECTED)
    desk.commit()
    assert desk.contradictions() == [(first.outbox_id, 1, Contradiction.ATTEMPT)]
    assert desk.known(first.outbox_id) is KnownOutcome.UNKNOWN
    assert len(desk.work.unresolved()) == 1


@pytest.mark.invariant("INV-OUT-011")
def test_sent_of_an_item_that_was_redriven_is_a_contradiction(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, LateOutcome.NOT_SENT)
    desk.redrive(item.outbox_id)
    desk.work.complete(desk.claim(), DISPATCHED)
    desk.commit()
    assert desk.contradictions() == []
    desk.late(item, LateOutcome.SENT)
    assert [one[:2] for one in desk.contradictions()] == [(item.outbox_id, 2)]


@pytest.mark.invariant("INV-OUT-011")
def test_sent_of_an_instruction_that_failed_is_stored_and_reported(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, LateOutcome.NOT_SENT)
    desk.end(InstructionState.FAILED)
    desk.resolve(item.outbox_id, LateOutcome.SENT, "on the next statement")
    (found,) = desk.govern.contradictions()
    assert (found.result_no, found.instruction_state) == (2, InstructionState.FAILED)
    assert (found.amount_minor, found.currency, found.rail_type) == (100, "EUR", "SEPA")
    assert found.outcome is LateOutcome.SENT


@pytest.mark.invariant("INV-OUT-011")
def test_rejected_after_dispatched_is_a_contradiction(desk: Desk) -> None:
    item = desk.ended(DISPATCHED)
    desk.resolve(item.outbox_id, LateOutcome.REJECTED, "returned by the creditor's bank")
    assert desk.contradictions() == [(item.outbox_id, 1, Contradiction.ATTEMPT)]
    assert desk.end(InstructionState.COMPLETED) is InstructionState.COMPLETED


@pytest.mark.invariant("INV-OUT-011", "INV-AUD-001")
def test_a_contradiction_stays_until_control_closes_it_with_a_reason(
    desk: Desk, owner: Connect
) -> None:
    item = desk.ended(REJECTED)
    result_no = desk.late(item, LateOutcome.SENT)
    desk.resolve(item.outbox_id, LateOutcome.REJECTED)
    assert len(desk.contradictions()) == 2

    def close(reason: str, no: int = result_no, by: str | None = None) -> Any:
        return desk.govern.close_contradiction(item.outbox_id, no, reason=reason, by=by)

    closed = close("the worker misread the answer", by="ann")
    again = close("the worker misread the answer", by="ann")
    desk.commit()
    assert closed.action is Intervention.CLOSE_CONTRADICTION
    assert (closed.result_no, closed.reason, closed.acted_by) == (
        *(result_no, "the worker misread the answer", "ann"),
    )
    assert again == closed.model_copy(update={"replayed": True})
    assert desk.contradictions() == [(item.outbox_id, 2, Contradiction.LATE_RESULT)]
    refused = desk.refused(lambda: close("for another reason"))
    assert (refused.sqlstate, refused.invariant) == ("P7005", "INV-OUT-011")
    assert desk.refused(lambda: close("none", 9)).sqlstate == "P0002"
    assert acts(owner) == ["RESOLVE", "CLOSE_CONTRADICTION"]


def test_what_contradicts_nothing_is_not_closed(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, LateOutcome.SENT)
    refused = desk.refused(
        lambda: desk.govern.close_contradiction(item.outbox_id, 1, reason="none")
    )
    assert (refused.sqlstate, refused.invariant) == ("P7005", "INV-OUT-011")


# Control's interventions.


@pytest.mark.invariant("INV-OUT-005", "INV-AUD-001")
def test_an_item_that_nobody_claimed_is_cancelled(desk: Desk, owner: Connect) -> None:
    made = desk.enqueue()
    cancelled = desk.govern.cancel(made.outbox_id, reason="the customer asked", by="ann")
    again = desk.govern.cancel(made.outbox_id, reason="the customer asked", by="ann")
    desk.commit()
    assert (cancelled.action, cancelled.attempt_no) == (Intervention.CANCEL, 1)
    assert (cancelled.reason, cancelled.acted_by) == ("the customer asked", "ann")
    assert again == cancelled.model_copy(update={"replayed": True})
    status = desk.work.get(made.outbox_id)
    assert status is not None
    assert (status.state, status.outcome) == (ItemState.FAILED, Outcome.NOT_SENT)
    assert (status.error_code, status.known_outcome) == ("CANCELLED", KnownOutcome.NOT_SENT)
    opening, closing = desk.work.attempts(made.outbox_id)
    assert (opening.worker_id, closing.error_message) == ("ann", "the customer asked")
    assert desk.work.claim("w", batch_size=1, lease=timedelta(minutes=1)) == []
    assert acts(owner) == ["CANCEL"]
    assert desk.redrive(made.outbox_id).redrive_no == 1


@pytest.mark.invariant("INV-OUT-005")
def test_an_item_that_is_claimed_or_has_ended_is_neither_cancelled_nor_rescheduled(
    desk: Desk,
) -> None:
    made = desk.enqueue()
    due_at = datetime.now(UTC)
    acts: list[Callable[[], object]] = [
        lambda: desk.govern.cancel(made.outbox_id, reason="test"),
        lambda: desk.govern.reschedule(made.outbox_id, due_at=due_at),
    ]
    item = desk.claim()
    for act in acts:
        refused = desk.refused(act)
        assert (refused.sqlstate, refused.invariant) == ("P7005", "INV-OUT-005")
    desk.work.complete(item, DISPATCHED)
    desk.commit()
    for act in acts:
        refused = desk.refused(act)
        assert (refused.sqlstate, refused.invariant) == ("P7005", "INV-OUT-005")


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize(
    ("scope", "target"), [("GLOBAL", None), ("DISPATCH", None), ("PARTICIPANT", "bank-a")]
)
def test_no_kill_switch_stops_what_ends_or_resolves_an_item(
    desk: Desk, scope: str, target: str | None
) -> None:
    waits, unknown = desk.enqueue("waits", due_at=datetime.now(UTC) + timedelta(days=1)), None
    unknown = desk.ended(UNKNOWN)
    KillSwitchRepository(desk.control).engage(
        scope=scope, target=target, reason="test", engaged_by="ann"
    )
    desk.commit()
    desk.govern.reschedule(waits.outbox_id, due_at=datetime.now(UTC))
    desk.govern.cancel(waits.outbox_id, reason="test")
    desk.commit()
    desk.late(unknown, LateOutcome.NOT_SENT)
    desk.resolve(unknown.outbox_id, LateOutcome.NOT_SENT)
    desk.redrive(unknown.outbox_id)


@pytest.mark.invariant("INV-AUD-001")
def test_an_item_is_rescheduled(desk: Desk, owner: Connect) -> None:
    later = datetime.now(UTC) + timedelta(days=30)
    made = desk.enqueue(due_at=later)
    now = datetime.now(UTC)
    moved = desk.govern.reschedule(made.outbox_id, due_at=now)
    again = desk.govern.reschedule(made.outbox_id, due_at=now)
    desk.commit()
    assert (moved.action, moved.time_before, moved.time_after) == (
        *(Intervention.RESCHEDULE, later, now),
    )
    assert again == moved.model_copy(update={"replayed": True})
    assert acts(owner) == ["RESCHEDULE"]
    desk.work.complete(desk.claim(), DISPATCHED)
    desk.commit()


@pytest.mark.invariant("INV-API-001")
def test_an_item_is_rescheduled_at_most_400_days_ahead(desk: Desk) -> None:
    made = desk.enqueue()
    far = datetime.now(UTC) + timedelta(days=401)
    refused = desk.refused(lambda: desk.govern.reschedule(made.outbox_id, due_at=far))
    assert (refused.sqlstate, refused.invariant) == ("22023", "INV-API-001")
    desk.govern.reschedule(made.outbox_id, due_at=far - timedelta(days=2))
    desk.commit()


@pytest.mark.invariant("INV-OUT-002", "INV-AUD-001")
def test_control_ends_a_live_lease(desk: Desk, owner: Connect) -> None:
    made = desk.enqueue()
    item = desk.claim()
    ended = desk.govern.expire_lease(made.outbox_id, reason="the host burnt down", by="ann")
    again = desk.govern.expire_lease(made.outbox_id, reason="the host burnt down", by="ann")
    desk.commit()
    assert (ended.action, ended.attempt_no) == (Intervention.EXPIRE_LEASE, 1)
    assert ended.time_before == item.lease_expires_at
    assert again == ended.model_copy(update={"replayed": True})
    assert isinstance(desk.refused(lambda: desk.work.complete(item, DISPATCHED)), errors.LeaseLost)
    assert desk.claim().attempt_no == 2
    assert acts(owner) == ["EXPIRE_LEASE"]


@pytest.mark.invariant("INV-OUT-002")
def test_without_a_live_lease_there_is_none_to_end(desk: Desk) -> None:
    made = desk.enqueue()
    refused = desk.refused(lambda: desk.govern.expire_lease(made.outbox_id, reason="test"))
    assert (refused.sqlstate, refused.invariant) == ("P7002", "INV-OUT-002")


@pytest.mark.parametrize("reason", ["", None])
@pytest.mark.invariant("INV-API-001")
def test_an_intervention_needs_a_reason(desk: Desk, login: Login, reason: str | None) -> None:
    made = desk.enqueue()
    desk.commit()
    for act in (
        lambda: desk.govern.cancel(made.outbox_id, reason=""),
        lambda: desk.govern.expire_lease(made.outbox_id, reason=""),
        lambda: desk.govern.resolve(made.outbox_id, outcome=LateOutcome.SENT, reason=""),
        lambda: desk.govern.close_contradiction(made.outbox_id, 1, reason=""),
    ):
        with pytest.raises(ValidationError):
            act()
    for call in (
        "cancel_outbox_item(p_outbox_id => %s, p_reason => %s)",
        "expire_outbox_lease(p_outbox_id => %s, p_reason => %s)",
        "resolve_outbox_item(p_outbox_id => %s, p_outcome => 'SENT', p_reason => %s)",
        "close_contradiction(p_outbox_id => %s, p_result_no => 1, p_reason => %s)",
    ):
        found = refusal(
            login("control"), f"SELECT FROM orchestration.{call}", (made.outbox_id, reason)
        )
        assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001")


@pytest.mark.invariant("INV-API-002")
def test_an_act_on_an_item_that_does_not_exist_is_not_found(desk: Desk) -> None:
    nobody = desk.instruction_id
    for act in (
        lambda: desk.govern.cancel(nobody, reason="test"),
        lambda: desk.govern.reschedule(nobody, due_at=datetime.now(UTC)),
        lambda: desk.govern.expire_lease(nobody, reason="test"),
        lambda: desk.govern.resolve(nobody, outcome=LateOutcome.SENT, reason="test"),
        lambda: desk.govern.close_contradiction(nobody, 1, reason="test"),
    ):
        assert isinstance(desk.refused(act), errors.NotFound)


def test_a_worker_does_not_reconcile_and_control_reports_for_no_worker(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    for act in (
        lambda: desk.work.resolve(item.outbox_id, outcome=LateOutcome.SENT, reason="test"),
        lambda: desk.work.cancel(item.outbox_id, reason="test"),
        lambda: desk.govern.record_late_result(item, outcome=LateOutcome.SENT),
    ):
        assert desk.refused(act).sqlstate == "42501"


# Required columns of an item and of a completion.


@pytest.mark.invariant("INV-OUT-003")
def test_a_failed_completion_names_its_outcome() -> None:
    with pytest.raises(ValidationError, match="requires an outcome"):
        Completion(state=CompletionState.FAILED)
    assert Completion(state=CompletionState.RETRYABLE).outcome is None


CONTEXT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


@pytest.mark.invariant("INV-OUT-004")
def test_the_context_of_the_first_travels_and_is_no_content(desk: Desk) -> None:
    first = desk.enqueue(context=CONTEXT)
    again = desk.enqueue(context={"another": 1})
    assert (first.context, first.replayed) == (CONTEXT, False)
    assert (again.context, again.replayed) == (CONTEXT, True)
    item = desk.claim()
    assert item.context == CONTEXT
    desk.work.complete(item, REJECTED)
    desk.commit()
    assert desk.redrive(first.outbox_id).context == CONTEXT
    assert desk.enqueue("none").context is None


def test_a_context_of_more_than_eight_thousand_octets_is_refused() -> None:
    with pytest.raises(ValidationError, match="8000 octets"):
        NewOutboxItem(
            instruction_id=new_instruction_id(),
            participant_id="bank-a",
            idempotency_key="k",
            rail_type="SEPA",
            payload={},
            context={"a": "x" * 8000},
        )


@pytest.mark.invariant("INV-OUT-004")
def test_what_is_enqueued_says_whether_it_was_there_already(desk: Desk) -> None:
    assert not desk.enqueue().replayed
    assert desk.enqueue().replayed
    news = [
        NewOutboxItem(
            instruction_id=desk.instruction_id,
            participant_id="bank-a",
            idempotency_key=key,
            rail_type="SEPA",
            payload={"amount": 100},
        )
        for key in ("k", "new")
    ]
    assert [one.replayed for one in desk.work.enqueue_many(news)] == [True, False]
    assert [one.replayed for one in desk.work.enqueue_many(news)] == [True, True]
    twice = [news[1].model_copy(update={"idempotency_key": "twice"})] * 2
    assert [one.replayed for one in desk.work.enqueue_many(twice)] == [False, True]
    desk.commit()


@pytest.mark.invariant("INV-INS-007")
def test_the_receiving_side_enqueues_nothing(session: Sessions, desk: Desk) -> None:
    ingest = OutboxRepository(session("ingest"))
    with pytest.raises(errors.InsufficientPrivilege):
        ingest.enqueue_many([])


@pytest.mark.invariant("INV-AUD-001")
def test_the_audit_log_records_who_resolved_what(desk: Desk) -> None:
    item = desk.ended(UNKNOWN)
    desk.resolve(item.outbox_id, LateOutcome.SENT)
    entry = AuditLogRepository(desk.control).entries()[-1]
    assert (entry.action, entry.table_name) == ("RESOLVE", "payment_outbox_late_results")
    assert entry.after[f"{item.outbox_id}/1"]["reason"] == REASON


# A change that the owner makes by hand is recorded like a call of control.


BY_HAND = {
    "RESCHEDULE": "UPDATE orchestration.payment_outbox_pending"
    " SET next_attempt_at = next_attempt_at + interval '1 hour'",
    "EXPIRE_LEASE": "UPDATE orchestration.payment_outbox_pending"
    " SET lease_expires_at = clock_timestamp()",
    "RESOLVE": "INSERT INTO orchestration.payment_outbox_late_results"
    " (outbox_id, attempt_no, source, outcome, reason)"
    " SELECT outbox_id, 1, 'RECONCILIATION', 'SENT', 'by hand'"
    " FROM orchestration.payment_outbox_items",
    "CANCEL": """
    WITH leased AS (
      UPDATE orchestration.payment_outbox_pending
      SET attempt_count = 1, claimed_by = 'owner', lease_token = gen_random_uuid(),
          lease_expires_at = clock_timestamp() + interval '1 minute'
      RETURNING outbox_id, lease_token, clock_timestamp() AS now
    ), closed AS (
      INSERT INTO orchestration.payment_outbox_attempts (
        outbox_id, attempt_no, phase, state, outcome, lease_token, worker_id, claimed_at,
        completed_at, error_code
      )
      SELECT outbox_id, 1, phase, state, outcome, lease_token, 'owner', now,
             CASE phase WHEN 'CLOSE' THEN now END, error_code
      FROM leased
      CROSS JOIN (VALUES ('OPEN', 'DISPATCHING', NULL, NULL),
                         ('CLOSE', 'FAILED', 'NOT_SENT', 'CANCELLED'))
        AS a (phase, state, outcome, error_code)
    )
    SELECT
    """,
}


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("action", BY_HAND)
def test_an_act_by_hand_leaves_one_entry_that_stays_explained(
    desk: Desk, owner: Connect, action: str
) -> None:
    desk.enqueue()
    claimed = None if action in ("RESCHEDULE", "CANCEL") else desk.claim()
    if claimed is not None and action == "RESOLVE":
        desk.work.complete(claimed, UNKNOWN)
        desk.commit()
    owner.execute(BY_HAND[action])
    if action == "CANCEL":
        owner.execute("DELETE FROM orchestration.payment_outbox_pending")
    elif action == "RESCHEDULE":
        # The pending row is deleted, and the audit entry remains explained.
        (made,) = owner.execute("SELECT outbox_id FROM orchestration.payment_outbox_items")
        desk.govern.reschedule(made[0], due_at=datetime.now(UTC))
        desk.commit()
        desk.work.complete(desk.claim(), DISPATCHED)
        desk.commit()
        assert acts(owner) == ["RESCHEDULE", "RESCHEDULE"]
        return
    elif claimed is not None and action == "EXPIRE_LEASE":
        desk.work.complete(desk.claim(), DISPATCHED)
        desk.commit()
    assert acts(owner) == [action]


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("payment_outbox_late_results", "result_no"),
        ("payment_outbox_interventions", "intervention_no"),
    ],
)
def test_an_act_whose_entry_is_missing_is_found(
    desk: Desk, owner: Connect, table: str, key: str
) -> None:
    outbox_id = desk.ended(UNKNOWN).outbox_id
    trigger = f"orchestration.{table} {{}} TRIGGER audit"
    owner.execute(f"ALTER TABLE {trigger.format('DISABLE')}")
    result_no = desk.resolve(outbox_id, LateOutcome.NOT_SENT)
    if table == "payment_outbox_interventions":
        made = desk.redrive(outbox_id)
        desk.govern.cancel(made.outbox_id, reason="test")
        desk.commit()
        outbox_id = made.outbox_id
    owner.execute(f"ALTER TABLE {trigger.format('ENABLE')}")
    found = owner.execute(
        "SELECT break_table_name, break_key, break_reason FROM orchestration.verify_audit_log()"
    ).fetchall()
    assert found == [(table, f"{outbox_id}/{result_no}", "no entry records this act")]
    # An entry that is written by hand explains the act if it contains the content of the row.
    owner.execute(
        "INSERT INTO orchestration.audit_log (action, table_name, after)"
        " SELECT coalesce(to_jsonb(r) ->> 'action', 'RESOLVE'), %s, jsonb_build_object("
        f"r.outbox_id || '/' || r.{key}, to_jsonb(r) - 'xact_id')"
        f" FROM orchestration.{table} r",
        (table,),
    )
