"""Instructions: receive, authorize, execute, complete or fail, with their history (INV-INS)."""

from collections.abc import Iterable
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import Field, TypeAdapter
from sqlalchemy import TextClause, select, text

from orchestration.models import StatusHistory
from orchestration.records import InstructionRecord, NewInstruction, StatusHistoryRecord
from orchestration.repo.arguments import ID, REASON, argument, dump_inputs, instance, instances
from orchestration.repo.base import Repository, one

RECEIVE: Final = text(
    """
    SELECT *
    FROM orchestration.receive_instruction(p_instructions => CAST(:instructions AS jsonb))
    """
)
AUTHORIZE: Final = text(
    "SELECT * FROM orchestration.authorize_instruction(p_id => :id, p_version => :version)"
)
START_EXECUTION: Final = text(
    "SELECT * FROM orchestration.start_execution(p_id => :id, p_version => :version)"
)
COMPLETE: Final = text(
    "SELECT * FROM orchestration.complete_instruction(p_id => :id, p_version => :version)"
)
FAIL: Final = text(
    """
    SELECT *
    FROM orchestration.fail_instruction(p_id => :id, p_version => :version, p_reason => :reason)
    """
)
STATUS: Final = text("SELECT * FROM orchestration.instruction_status WHERE id = :id")

HISTORY: Final = StatusHistory.__table__
VERSION: Final[TypeAdapter[int]] = TypeAdapter(Annotated[int, Field(strict=True, ge=1, lt=2**31)])


class InstructionRepository(Repository):
    """Instructions on the caller's Session; receiving needs `symphony_ingest`, the transitions
    `symphony_executor`.

    A transition names the `version` it was decided on, and every record carries the newest one.
    A transition may be repeated after an unknown outcome: if the same login asks for the same
    transition from the same version (and for the same reason), it gets the instruction as that
    transition left it, `replayed`. Nothing is checked or recorded again. `get` returns the
    instruction as it is now.
    """

    def receive(self, new: NewInstruction) -> InstructionRecord:
        """Receive one instruction; as `receive_many` of one."""
        return self.receive_many([instance("new", NewInstruction, new)])[0]

    def receive_many(self, news: Iterable[NewInstruction]) -> list[InstructionRecord]:
        """Receive up to 10,000 instructions, all or none, in one round trip; records in input
        order.

        A key (`participant_id`, `idempotency_key`) that was received before with the same content
        gives the instruction as it stands; who asked and under which policy is the first's.

        Raises InstructionKeyConflict (P7402, INV-INS-008), KillSwitchEngaged (P7501, INV-KIL-001),
        PolicyNotAccepted (P7105, INV-ATT-008) for an unknown policy version, ForeignKeyViolation
        (23503) for an unknown attestation, InvalidParameterValue (22023, INV-API-001) for more than
        10,000, SerializationFailure (40001) in a snapshot too old to see the key.
        """
        instructions = dump_inputs("news", instances("news", NewInstruction, news), _received)
        rows = self._rows(RECEIVE, {"instructions": instructions})
        return [InstructionRecord.from_row(row) for row in rows]

    def authorize(self, id: UUID, *, version: int) -> InstructionRecord:
        """RECEIVED becomes AUTHORIZED, under the policy and revocation gates, held until COMMIT.

        Raises SegregationOfDuties (P7405, INV-INS-007) for the login that received it,
        KillSwitchEngaged (P7501, INV-KIL-001), PolicyNotAccepted (P7105) and CredentialRevoked
        (P7202) as things are now (INV-INS-010), and what every transition does: NotFound (P0002,
        INV-API-002), StaleInstruction (P7403, INV-INS-009), InvalidInstructionTransition (P7401,
        INV-INS-001).
        """
        return self._transition(AUTHORIZE, id, version)

    def start_execution(self, id: UUID, *, version: int) -> InstructionRecord:
        """AUTHORIZED becomes EXECUTING.

        Raises KillSwitchEngaged (P7501, INV-KIL-001), NotFound (P0002), StaleInstruction (P7403),
        InvalidInstructionTransition (P7401).
        """
        return self._transition(START_EXECUTION, id, version)

    def complete(self, id: UUID, *, version: int) -> InstructionRecord:
        """EXECUTING becomes COMPLETED; the completion of the last item may be in the same
        transaction.

        Raises InstructionStateForbids (P7404, INV-INS-006) while an item is open, or where none was
        DISPATCHED; NotFound (P0002), StaleInstruction (P7403), InvalidInstructionTransition
        (P7401).
        """
        return self._transition(COMPLETE, id, version)

    def fail(self, id: UUID, *, version: int, reason: str) -> InstructionRecord:
        """FAILED, from any state that is not final; `reason` is kept with it.

        Raises InstructionStateForbids (P7404, INV-INS-006) while an item is open, or where one was
        DISPATCHED or is UNKNOWN; NotFound (P0002), StaleInstruction (P7403),
        InvalidInstructionTransition (P7401).
        """
        return self._transition(FAIL, id, version, reason=argument("reason", REASON, reason))

    def get(self, id: UUID) -> InstructionRecord | None:
        """Where the instruction stands, or None."""
        row = self._row(STATUS, {"id": argument("id", ID, id)})
        return InstructionRecord.from_row(row) if row else None

    def history(self, id: UUID) -> list[StatusHistoryRecord]:
        """Every transition of the instruction, in order; ingest may not read it."""
        rows = self._rows(
            select(HISTORY)
            .where(HISTORY.c.instruction_id == argument("id", ID, id))
            .order_by(HISTORY.c.version)
        )
        return [StatusHistoryRecord.from_row(row) for row in rows]

    def _transition(
        self, statement: TextClause, id: UUID, version: int, **parameters: str
    ) -> InstructionRecord:
        given = {"id": argument("id", ID, id), "version": argument("version", VERSION, version)}
        row = self._row(statement, given | parameters)
        return InstructionRecord.from_row(one(row))


def _received(new: NewInstruction) -> dict[str, Any]:
    return {
        "participant_id": new.participant_id,
        "idempotency_key": new.idempotency_key,
        "instruction_type": new.instruction_type,
        "end_to_end_id": new.end_to_end_id,
        "uetr": None if new.uetr is None else str(new.uetr),
        "value_date": None if new.value_date is None else new.value_date.isoformat(),
        "amount_minor": new.amount_minor,
        "currency": new.currency,
        "debtor_account": new.debtor_account,
        "creditor_account": new.creditor_account,
        "payload": new.payload,
        "attestation_id": str(new.attestation_id),
        "policy_version_id": new.policy_version_id,
    }
