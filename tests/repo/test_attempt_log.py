"""AttemptLogRepository as the services use it: in the caller's transaction, as the executor."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import ExecutionAttempt, TransactionAttempt
from orchestration.repo import AttemptLogRepository, InstructionRepository
from orchestration.vocabulary import AttemptOutcome, AttemptPhase
from tests.support import Connect, instruction_id, replayed, scalar

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

AUTHORIZED = instruction_id("p", 0)
NOWHERE = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture
def log(session: Sessions) -> AttemptLogRepository:
    return AttemptLogRepository(session("executor"))


Open = Callable[[AttemptLogRepository], ExecutionAttempt]
Close = Callable[..., ExecutionAttempt]

EXECUTION: tuple[Open, Close] = (
    lambda log: log.open_execution(AUTHORIZED, worker_id="w"),
    lambda log, no=1, **ended: log.close_execution(AUTHORIZED, no, **ended),
)
TRANSACTION: tuple[Open, Close] = (
    lambda log: log.open_transaction(AUTHORIZED, worker_id="w", rail_type="SEPA"),
    lambda log, no=1, **ended: log.close_transaction(AUTHORIZED, no, **ended),
)

each_log = pytest.mark.parametrize(
    ("opens", "closes"), [EXECUTION, TRANSACTION], ids=["execution", "transaction"]
)


# What is recorded.


@pytest.mark.invariant("INV-APP-002")
def test_a_run_is_returned_as_it_was_recorded(log: AttemptLogRepository) -> None:
    began = datetime.now(UTC)
    opened = log.open_execution(AUTHORIZED, worker_id="engine-1")
    assert opened == ExecutionAttempt(
        instruction_id=AUTHORIZED,
        attempt_no=1,
        phase=AttemptPhase.OPEN,
        participant_id="p",
        worker_id="engine-1",
        outcome=None,
        error_code=None,
        error_message=None,
        occurred_at=opened.occurred_at,
        db_user=opened.db_user,
    )
    assert opened.db_user.endswith("_executor")
    closed = log.close_execution(
        AUTHORIZED, 1, outcome=AttemptOutcome.FAILED, error_code="AC04", error_message="closed"
    )
    assert closed == opened.model_copy(
        update={
            "phase": AttemptPhase.CLOSE,
            "outcome": AttemptOutcome.FAILED,
            "error_code": "AC04",
            "error_message": "closed",
            "occurred_at": closed.occurred_at,
        }
    )
    assert began < opened.occurred_at < closed.occurred_at


@pytest.mark.invariant("INV-APP-002")
def test_a_rail_call_is_returned_as_it_was_recorded(log: AttemptLogRepository) -> None:
    opened = log.open_transaction(AUTHORIZED, worker_id="engine-1", rail_type="SWIFT")
    assert opened == TransactionAttempt(
        instruction_id=AUTHORIZED,
        attempt_no=1,
        phase=AttemptPhase.OPEN,
        participant_id="p",
        worker_id="engine-1",
        outcome=None,
        error_code=None,
        error_message=None,
        occurred_at=opened.occurred_at,
        db_user=opened.db_user,
        rail_type="SWIFT",
        rail_reference=None,
    )
    closed = log.close_transaction(AUTHORIZED, 1, outcome="SUCCEEDED", rail_reference="R-1")
    assert closed == opened.model_copy(
        update={
            "phase": AttemptPhase.CLOSE,
            "outcome": AttemptOutcome.SUCCEEDED,
            "rail_reference": "R-1",
            "occurred_at": closed.occurred_at,
        }
    )


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_attempts_are_numbered_until_one_succeeds(
    log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    for number, outcome in enumerate(("ABANDONED", "FAILED", "SUCCEEDED"), 1):
        assert opens(log).attempt_no == number
        ended = closes(log, number, outcome=outcome)
        assert ended.outcome is AttemptOutcome(outcome)
    with pytest.raises(errors.InvalidInstructionTransition) as raised:
        opens(log)
    assert_refused(raised.value, "INV-APP-002", "P7401")


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_the_same_closing_again_gives_the_recorded_one(
    log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    opens(log)
    ended = {"outcome": "FAILED", "error_code": "E1", "error_message": "no"}
    assert replayed(closes(log, **ended)) == closes(log, **ended)


def test_the_two_logs_are_apart(log: AttemptLogRepository) -> None:
    log.open_execution(AUTHORIZED, worker_id="w")
    called = log.open_transaction(AUTHORIZED, worker_id="w", rail_type="SEPA")
    assert called.attempt_no == 1
    log.close_execution(AUTHORIZED, 1, outcome="SUCCEEDED")
    closed = log.close_transaction(AUTHORIZED, 1, outcome="FAILED")
    assert closed.outcome is AttemptOutcome.FAILED


def test_a_run_is_opened_with_the_execution_and_closed_with_its_end(session: Sessions) -> None:
    executor = session("executor")
    instructions, log = InstructionRepository(executor), AttemptLogRepository(executor)
    executing = instructions.start_execution(AUTHORIZED, version=2)
    run = log.open_execution(AUTHORIZED, worker_id="engine-1")
    executor.commit()
    instructions.fail(AUTHORIZED, version=executing.version, reason="AC04")
    log.close_execution(AUTHORIZED, run.attempt_no, outcome="FAILED", error_code="AC04")
    executor.commit()
    found = (
        session("readonly")
        .connection()
        .exec_driver_sql(
            "SELECT phase, outcome FROM orchestration.execution_attempts ORDER BY occurred_at"
        )
    )
    assert found.fetchall() == [("OPEN", None), ("CLOSE", "FAILED")]


def test_nothing_is_there_before_the_caller_commits(
    log: AttemptLogRepository, session: Sessions, owner: Connect
) -> None:
    count = "SELECT count(*) FROM orchestration.execution_attempts"
    used = session("executor")
    AttemptLogRepository(used).open_execution(AUTHORIZED, worker_id="w")
    assert scalar(owner, count) == 0
    used.rollback()
    assert scalar(owner, count) == 0
    assert log.open_execution(AUTHORIZED, worker_id="w").attempt_no == 1


@each_log
def test_an_act_is_one_round_trip(
    engine: Callable[[str], Engine], log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    sent: list[str] = []

    @event.listens_for(engine("executor"), "before_cursor_execute")
    def remember(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    opens(log)
    assert len(sent) == 1
    closes(log, outcome="SUCCEEDED")
    assert len(sent) == 2


# What is refused.


def assert_refused(error: OrchestrationError, invariant: str, sqlstate: str) -> None:
    assert (error.invariant, error.sqlstate, error.schema) == (invariant, sqlstate, "orchestration")
    assert error.retry is Retry.NEVER
    assert error.hint


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_an_attempt_that_is_open_is_closed_first(
    session: Sessions, log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    used = session("executor")
    mine = AttemptLogRepository(used)
    opens(mine)
    with pytest.raises(errors.InvalidInstructionTransition) as raised, used.begin_nested():
        opens(mine)
    assert_refused(raised.value, "INV-APP-002", "P7401")
    assert raised.value.detail == {
        "instruction_id": str(AUTHORIZED),
        "attempt_no": 2,
        "phase": "OPEN",
    }
    closes(mine, outcome="ABANDONED")
    used.commit()
    assert opens(log).attempt_no == 2


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_an_attempt_is_not_closed_otherwise(
    log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    opens(log)
    closes(log, outcome="FAILED")
    with pytest.raises(errors.InvalidInstructionTransition) as raised:
        closes(log, outcome="SUCCEEDED")
    assert_refused(raised.value, "INV-APP-002", "P7401")
    assert raised.value.column == "outcome"


@pytest.mark.invariant("INV-API-002")
@each_log
def test_what_was_never_opened_is_not_found(
    log: AttemptLogRepository, opens: Open, closes: Close
) -> None:
    opens(log)
    with pytest.raises(errors.NotFound) as raised:
        closes(log, 2, outcome="FAILED")
    assert_refused(raised.value, "INV-API-002", "P0002")


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "act",
    [
        lambda log: log.open_execution(NOWHERE, worker_id="w"),
        lambda log: log.close_execution(NOWHERE, 1, outcome="FAILED"),
        lambda log: log.open_transaction(NOWHERE, worker_id="w", rail_type="SEPA"),
        lambda log: log.close_transaction(NOWHERE, 1, outcome="FAILED"),
    ],
)
def test_an_instruction_that_does_not_exist_is_not_found(
    log: AttemptLogRepository, act: Callable[[AttemptLogRepository], object]
) -> None:
    with pytest.raises(errors.NotFound) as raised:
        act(log)
    assert_refused(raised.value, "INV-API-002", "P0002")
    assert (raised.value.table, raised.value.detail) == ("instructions", {"id": str(NOWHERE)})


@each_log
@pytest.mark.parametrize("told", [{"error_code": "E1"}, {"error_message": "no"}], ids=str)
def test_a_success_has_no_error(
    log: AttemptLogRepository, opens: Open, closes: Close, told: dict[str, str]
) -> None:
    opens(log)
    with pytest.raises(errors.CheckViolation):
        closes(log, outcome="SUCCEEDED", **told)


@pytest.mark.parametrize("role", ["ingest", "control", "readonly", "auditor"])
@each_log
def test_only_the_executor_writes_the_logs(
    session: Sessions, role: str, opens: Open, closes: Close
) -> None:
    for act in (opens, lambda log: closes(log, outcome="FAILED")):
        used = session(role)
        with pytest.raises(errors.InsufficientPrivilege):
            act(AttemptLogRepository(used))
        used.rollback()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("instruction_id", {"instruction_id": "x"}),
        ("attempt_no", {"attempt_no": 0}),
        ("outcome", {"outcome": "DONE"}),
        ("error_code", {"error_code": ""}),
        ("error_message", {"error_message": "\0"}),
        ("rail_reference", {"rail_reference": ""}),
    ],
)
def test_a_closing_is_checked_before_it_is_sent(
    log: AttemptLogRepository, name: str, changed: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"instruction_id": uuid4(), "attempt_no": 1, "outcome": "FAILED"}
    with pytest.raises(ValidationError) as raised:
        log.close_transaction(**(given | changed))
    assert [error["loc"] for error in raised.value.errors()] == [(name,)]
