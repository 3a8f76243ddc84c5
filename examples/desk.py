"""The desk authorizes an instruction and enqueues its payment. Its login is not the ingress's."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from orchestration.records import InstructionRecord, NewOutboxItem, OutboxItemRecord
from orchestration.repo import AttemptLogRepository, InstructionRepository, OutboxRepository

ONLY_RUN = 1
"""The number of the run that the desk opens: the demo executes each instruction only once."""


def order(
    session: Session, instruction: InstructionRecord, payload: Mapping[str, Any]
) -> OutboxItemRecord:
    """Authorize the instruction in the version received, start its execution, open a run in the
    attempt log and enqueue the payment.

    Raises StaleInstruction (P7403), PolicyNotAccepted (P7105), CredentialRevoked (P7202).
    """
    instructions = InstructionRepository(session)
    authorized = instructions.authorize(instruction.id, version=instruction.version)
    instructions.start_execution(instruction.id, version=authorized.version)
    AttemptLogRepository(session).open_execution(instruction.id, worker_id="desk")
    return enqueue(session, instruction, payload)


def enqueue(
    session: Session, instruction: InstructionRecord, payload: Mapping[str, Any]
) -> OutboxItemRecord:
    """Enqueue the payment of an instruction.

    Raises InstructionStateForbids (P7404) if the instruction is not authorized.
    """
    return OutboxRepository(session).enqueue(
        NewOutboxItem(
            instruction_id=instruction.id,
            participant_id=instruction.participant_id,
            idempotency_key=instruction.idempotency_key,
            rail_type=payload["rail"],
            payload=dict(payload),
        )
    )
