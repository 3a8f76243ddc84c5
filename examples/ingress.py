"""The ingress attests a request, receives the instruction and writes its business row, all in one
transaction.

`public.payments` represents a table of the host service. Its row, the attestation and the
instruction commit together, or none of them does.
"""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from examples.credentials import Verified
from sqlalchemy import BigInteger, Text, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from orchestration.records import (
    AttestationRecord,
    InstructionRecord,
    NewAttestation,
    NewInstruction,
)
from orchestration.repo import AttestationRepository, InstructionRepository


class HostBase(DeclarativeBase):
    """The base of the host's models, whose metadata is separate from the library's."""


class Payment(HostBase):
    """A payment in the host service's table."""

    __tablename__ = "payments"
    __table_args__ = ({"schema": "public"},)

    instruction_id: Mapped[UUID] = mapped_column(Uuid(), primary_key=True)
    attestation_id: Mapped[UUID] = mapped_column(Uuid())
    debtor: Mapped[str] = mapped_column(Text())
    end_to_end_id: Mapped[str] = mapped_column(Text())
    amount_minor: Mapped[int] = mapped_column(BigInteger())
    currency: Mapped[str] = mapped_column(Text())


@dataclass(frozen=True)
class Accepted:
    attestation: AttestationRecord
    instruction: InstructionRecord


def accept(session: Session, request: Verified) -> Accepted:
    """Record a payment request. A repeated request returns the records of the first one.

    Raises AttestationKeyConflict (P7303), InstructionKeyConflict (P7402), PolicyNotAccepted
    (P7105), CredentialRevoked (P7202).
    """
    payload = dict(request.payload)
    attestation = AttestationRepository(session).append(
        NewAttestation(
            caller_identity=request.caller,
            idempotency_key=request.request_id,
            payload_hash=request.payload_hash,
            policy_version_id=request.policy,
            signature_hash=request.signature_hash,
            client_cert_fingerprint_sha256=request.cert_fingerprint,
            token_hash=request.token_hash,
        )
    )
    instruction = InstructionRepository(session).receive(
        NewInstruction(
            participant_id=request.caller,
            idempotency_key=payload["end_to_end_id"],
            instruction_type="pain.001",
            end_to_end_id=payload["end_to_end_id"],
            uetr=UUID(payload["uetr"]),
            value_date=date.fromisoformat(payload["requested_execution_date"]),
            amount_minor=payload["amount_minor"],
            currency=payload["currency"],
            debtor_account=payload["debtor_account"],
            creditor_account=payload["creditor_account"],
            payload=payload,
            attestation_id=attestation.id,
            policy_version_id=request.policy,
        )
    )
    if session.get(Payment, instruction.id) is None:
        session.add(
            Payment(
                instruction_id=instruction.id,
                attestation_id=attestation.id,
                debtor=request.caller,
                end_to_end_id=payload["end_to_end_id"],
                amount_minor=payload["amount_minor"],
                currency=payload["currency"],
            )
        )
    return Accepted(attestation, instruction)
