"""The ingress: it attests a request, writes its own business row and enqueues, all in one
transaction.

`public.payments` stands for the table that the host service has anyway. Its row, the attestation
and the item of the outbox commit together, or none of them does.
"""

from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from examples.credentials import Verified
from sqlalchemy import BigInteger, Text, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from orchestration.records import (
    AttestationRecord,
    NewAttestation,
    NewOutboxItem,
    OutboxItemRecord,
)
from orchestration.repo import AttestationRepository, OutboxRepository


class HostBase(DeclarativeBase):
    """The host's own models, apart from the library's."""


class Payment(HostBase):
    """A payment as the host service keeps it."""

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
    item: OutboxItemRecord


def instruction_id(message_id: str, end_to_end_id: str) -> UUID:
    """The same payment has the same id, however often it is submitted."""
    return uuid5(NAMESPACE_URL, f"urn:payments:{message_id}:{end_to_end_id}")


def accept(session: Session, request: Verified) -> Accepted:
    """Take a payment in; a request that is here already gets its first records back.

    Raises IdempotencyConflict (P7303, P7004), PolicyNotAccepted (P7105), CredentialRevoked (P7202).
    """
    payload = dict(request.payload)
    payment_id = instruction_id(payload["message_id"], payload["end_to_end_id"])
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
    if session.get(Payment, payment_id) is None:
        session.add(
            Payment(
                instruction_id=payment_id,
                attestation_id=attestation.id,
                debtor=request.caller,
                end_to_end_id=payload["end_to_end_id"],
                amount_minor=payload["amount_minor"],
                currency=payload["currency"],
            )
        )
    item = OutboxRepository(session).enqueue(
        NewOutboxItem(
            instruction_id=payment_id,
            participant_id=request.caller,
            idempotency_key=payload["end_to_end_id"],
            rail_type=payload["rail"],
            payload=payload,
        )
    )
    return Accepted(attestation, item)
