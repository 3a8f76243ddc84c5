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
    """The attempt logs on the caller's Session; writing them needs `symphony_executor`.

    Attempts of an instruction are numbered 1, 2, 3 ..., in each of the two logs. Commit an opening
    before what it announces: it must be there when the side effect is.

    A log tells what was done, it permits nothing: neither the instruction's state nor a kill switch
    is asked. Whoever calls a rail outside the outbox asks both first.
    """

    def open_execution(self, instruction_id: UUID, *, worker_id: str) -> ExecutionAttempt:
        """Open the instruction's next run.

        Raises NotFound (P0002, INV-API-002), InvalidInstructionTransition (P7401, INV-APP-002)
        while a run is open, or after one that SUCCEEDED, SerializationFailure (40001) in a snapshot
        older than the log.
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
        """Record how a run ended: SUCCEEDED, FAILED or ABANDONED; the same closing again gives what
        was recorded. An error goes with the latter two.

        Raises NotFound (P0002, INV-API-002) for a run that was never opened,
        InvalidInstructionTransition (P7401, INV-APP-002) for one that was closed otherwise,
        CheckViolation (23514) for an error with SUCCEEDED, SerializationFailure (40001) in a
        snapshot older than the log.
        """
        closing = _closing(instruction_id, attempt_no, outcome, error_code, error_message)
        return ExecutionAttempt.from_row(one(self._row(CLOSE_EXECUTION, closing)))

    def open_transaction(
        self, instruction_id: UUID, *, worker_id: str, rail_type: str
    ) -> TransactionAttempt:
        """Open the instruction's next rail call outside the outbox; as `open_execution`."""
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
        """Record how a rail call ended, and the rail's reference of it; as `close_execution`."""
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
