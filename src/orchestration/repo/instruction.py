"""Instructions: receive, authorize, execute, complete or fail, with their history (INV-INS)."""

from collections.abc import Iterable
from typing import Annotated, Final
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
NEWS: Final = TypeAdapter(list[NewInstruction])
VERSION: Final[TypeAdapter[int]] = TypeAdapter(Annotated[int, Field(strict=True, ge=1, lt=2**31)])


class InstructionRepository(Repository):
    """Instructions on the caller's Session. Receiving requires `symphony_ingest`, transitions
    require `symphony_executor`.

    A transition names the `version` that the caller has read; every record contains the newest
    one. After an unknown outcome the caller can repeat a transition: if the same login requests the
    same transition from the same version (and for the same reason), it gets the instruction as that
    transition left it, `replayed`. Nothing is checked or recorded again. `get` returns the current
    state.
    """

    def receive(self, new: NewInstruction) -> InstructionRecord:
        """Receive one instruction. The rules and errors are those of `receive_many`."""
        return self.receive_many([instance("new", NewInstruction, new)])[0]

    def receive_many(self, news: Iterable[NewInstruction]) -> list[InstructionRecord]:
        """Receive up to 10,000 instructions, all or none, in one round trip. The records are in
        input order.

        If a key (`participant_id`, `idempotency_key`) was received before with the same content,
        the current state of that instruction is returned. Its attestation and policy version are
        those of the first request.

        Raises InstructionKeyConflict (P7402, INV-INS-008), KillSwitchEngaged (P7501, INV-KIL-001),
        PolicyNotAccepted (P7105, INV-ATT-008) for an unknown policy version, ForeignKeyViolation
        (23503) for an unknown attestation, InvalidParameterValue (22023, INV-API-001) for more than
        10,000, SerializationFailure (40001) if the snapshot is too old to see the key.
        """
        instructions = dump_inputs("news", NEWS, instances("news", NewInstruction, news))
        rows = self._rows(RECEIVE, {"instructions": instructions})
        return [InstructionRecord.from_row(row) for row in rows]

    def authorize(self, id: UUID, *, version: int) -> InstructionRecord:
        """Change RECEIVED to AUTHORIZED. The transaction holds the policy and revocation gates
        until COMMIT.

        Raises SegregationOfDuties (P7405, INV-INS-007) if the login has received the instruction,
        KillSwitchEngaged (P7501, INV-KIL-001), and PolicyNotAccepted (P7105) or CredentialRevoked
        (P7202) if the policy or a credential is not valid now (INV-INS-010). Every transition
        raises NotFound (P0002, INV-API-002), StaleInstruction (P7403, INV-INS-009),
        InvalidInstructionTransition (P7401, INV-INS-001).
        """
        return self._transition(AUTHORIZE, id, version)

    def start_execution(self, id: UUID, *, version: int) -> InstructionRecord:
        """Change AUTHORIZED to EXECUTING.

        Raises KillSwitchEngaged (P7501, INV-KIL-001), NotFound (P0002), StaleInstruction (P7403),
        InvalidInstructionTransition (P7401).
        """
        return self._transition(START_EXECUTION, id, version)

    def complete(self, id: UUID, *, version: int) -> InstructionRecord:
        """Change EXECUTING to COMPLETED. The same transaction can complete the last item.

        Raises InstructionStateForbids (P7404, INV-INS-006) if an item is open or if none was
        DISPATCHED; NotFound (P0002), StaleInstruction (P7403), InvalidInstructionTransition
        (P7401).
        """
        return self._transition(COMPLETE, id, version)

    def fail(self, id: UUID, *, version: int, reason: str) -> InstructionRecord:
        """Change any state that is not final to FAILED, and store the `reason`.

        Raises InstructionStateForbids (P7404, INV-INS-006) if an item is open, was DISPATCHED or is
        UNKNOWN; NotFound (P0002), StaleInstruction (P7403), InvalidInstructionTransition (P7401).
        """
        return self._transition(FAIL, id, version, reason=argument("reason", REASON, reason))

    def get(self, id: UUID) -> InstructionRecord | None:
        """Return the current state of the instruction, or None."""
        row = self._row(STATUS, {"id": argument("id", ID, id)})
        return InstructionRecord.from_row(row) if row else None

    def history(self, id: UUID) -> list[StatusHistoryRecord]:
        """Return every transition of the instruction, in order. Ingest cannot read it."""
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
