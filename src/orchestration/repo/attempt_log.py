"""The attempt logs of an instruction: its runs, and its rail calls outside the outbox (INV-APP)."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field, TypeAdapter
from sqlalchemy import text

from orchestration.records import ExecutionAttempt, Reason, TransactionAttempt
from orchestration.repo.arguments import ID, KEY, KEY_OR_NONE, argument
from orchestration.repo.base import Repository, one
from orchestration.vocabulary import AttemptOutcome

OPEN_EXECUTION: Final = text(
    """
    SELECT *
    FROM orchestration.open_execution_attempt(
      p_instruction_id => :instruction_id,
      p_worker_id => :worker_id
    )
    """
)
CLOSE_EXECUTION: Final = text(
    """
    SELECT *
    FROM orchestration.close_execution_attempt(
      p_instruction_id => :instruction_id,
      p_attempt_no => :attempt_no,
      p_outcome => :outcome,
      p_error_code => :error_code,
      p_error_message => :error_message
    )
    """
)
OPEN_TRANSACTION: Final = text(
    """
    SELECT *
    FROM orchestration.open_transaction_attempt(
      p_instruction_id => :instruction_id,
      p_worker_id => :worker_id,
      p_rail_type => :rail_type
    )
    """
)
CLOSE_TRANSACTION: Final = text(
    """
    SELECT *
    FROM orchestration.close_transaction_attempt(
      p_instruction_id => :instruction_id,
      p_attempt_no => :attempt_no,
      p_outcome => :outcome,
      p_error_code => :error_code,
      p_error_message => :error_message,
      p_rail_reference => :rail_reference
    )
    """
)

ATTEMPT_NO: Final[TypeAdapter[int]] = TypeAdapter(
    Annotated[int, Field(strict=True, ge=1, lt=2**31)]
)
OUTCOME: Final[TypeAdapter[AttemptOutcome]] = TypeAdapter(AttemptOutcome)
REASON_OR_NONE: Final[TypeAdapter[str | None]] = TypeAdapter(Reason | None)


class AttemptLogRepository(Repository):
    """The attempt logs on the caller's Session. Writing them requires `symphony_executor`.

    In each of the two logs the attempts of an instruction are numbered 1, 2, 3 .... Commit the
    opening before the side effect, so that every side effect has an opening.

    A log records what was done; it permits nothing. It checks neither the instruction's state nor a
    kill switch. Code that calls a rail outside the outbox must check both first.
    """

    def open_execution(self, instruction_id: UUID, *, worker_id: str) -> ExecutionAttempt:
        """Open the next run of the instruction.

        Raises NotFound (P0002, INV-API-002), InvalidInstructionTransition (P7401, INV-APP-002) if a
        run is open or has SUCCEEDED, SerializationFailure (40001) if the snapshot is older than the
        log.
        """
        row = self._row(
            OPEN_EXECUTION,
            {
                "instruction_id": argument("instruction_id", ID, instruction_id),
                "worker_id": argument("worker_id", KEY, worker_id),
            },
        )
        return ExecutionAttempt.from_row(one(row))

    def close_execution(
        self,
        instruction_id: UUID,
        attempt_no: int,
        *,
        outcome: AttemptOutcome | str,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> ExecutionAttempt:
        """Record how a run ended: SUCCEEDED, FAILED or ABANDONED. An error is only allowed with the
        latter two. If the same closing is repeated, it returns the recorded one.

        Raises NotFound (P0002, INV-API-002) if the run was never opened,
        InvalidInstructionTransition (P7401, INV-APP-002) if it was already closed with a different
        outcome, CheckViolation (23514) for an error with SUCCEEDED, SerializationFailure (40001) if
        the snapshot is older than the log.
        """
        closing = _closing(instruction_id, attempt_no, outcome, error_code, error_message)
        return ExecutionAttempt.from_row(one(self._row(CLOSE_EXECUTION, closing)))

    def open_transaction(
        self, instruction_id: UUID, *, worker_id: str, rail_type: str
    ) -> TransactionAttempt:
        """Open the next rail call outside the outbox. Raises the errors of `open_execution`."""
        row = self._row(
            OPEN_TRANSACTION,
            {
                "instruction_id": argument("instruction_id", ID, instruction_id),
                "worker_id": argument("worker_id", KEY, worker_id),
                "rail_type": argument("rail_type", KEY, rail_type),
            },
        )
        return TransactionAttempt.from_row(one(row))

    def close_transaction(
        self,
        instruction_id: UUID,
        attempt_no: int,
        *,
        outcome: AttemptOutcome | str,
        error_code: str | None = None,
        error_message: str | None = None,
        rail_reference: str | None = None,
    ) -> TransactionAttempt:
        """Record how a rail call ended, and the rail's reference for it. The rules and errors are
        those of `close_execution`."""
        closing = _closing(instruction_id, attempt_no, outcome, error_code, error_message)
        closing["rail_reference"] = argument("rail_reference", KEY_OR_NONE, rail_reference)
        return TransactionAttempt.from_row(one(self._row(CLOSE_TRANSACTION, closing)))


def _closing(
    instruction_id: UUID,
    attempt_no: int,
    outcome: AttemptOutcome | str,
    error_code: str | None,
    error_message: str | None,
) -> dict[str, Any]:
    return {
        "instruction_id": argument("instruction_id", ID, instruction_id),
        "attempt_no": argument("attempt_no", ATTEMPT_NO, attempt_no),
        "outcome": argument("outcome", OUTCOME, outcome).value,
        "error_code": argument("error_code", KEY_OR_NONE, error_code),
        "error_message": argument("error_message", REASON_OR_NONE, error_message),
    }
