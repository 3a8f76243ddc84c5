"""The acts of the shop. Every act works in the caller's Session and does not commit, so the shop's
rows and the library's rows commit together, or none of them does.

The web login (a member of symphony_ingest) attests and receives. The desk's login (a member of
symphony_executor) authorizes and enqueues.
"""

from hashlib import sha256

from sqlalchemy.orm import Session

from orchestration.records import (
    AttestationRecord,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
    OutboxItemRecord,
)
from orchestration.repo import AttestationRepository, InstructionRepository, OutboxRepository
from shop.models import Delivery, Order

CURRENCY = "GBP"
SHOP_ACCOUNT = "GB94BARC10201530093459"


def place(
    session: Session, order: Order, *, account: str, request_body: bytes, policy: str
) -> Order:
    """Store a customer's order, the attestation of the request and the payment instruction.

    If the order number exists, the flush raises SQLAlchemy's IntegrityError (23505).
    """
    attestation = _attest(session, order, "place", request_body, policy)
    instruction = InstructionRepository(session).receive(
        NewInstruction(
            participant_id=order.customer,
            idempotency_key=order.number,
            instruction_type="pain.001",
            end_to_end_id=order.number,
            amount_minor=order.amount_minor,
            currency=CURRENCY,
            debtor_account=account,
            creditor_account=SHOP_ACCOUNT,
            payload={"order": order.number},
            attestation_id=attestation.id,
            policy_version_id=policy,
        )
    )
    order.instruction_id = instruction.id
    session.add(order)
    return order


def approve(session: Session, number: str, *, version: int) -> OutboxItemRecord:
    """Approve the order: authorize its instruction, mark the order and enqueue the deposit.

    Raises SegregationOfDuties (P7405) for the login that placed the order, StaleInstruction (P7403)
    if the instruction has changed since the desk read it.
    """
    order = session.get_one(Order, number)
    InstructionRepository(session).authorize(order.instruction_id, version=version)
    order.state = "APPROVED"
    return _enqueue(session, order, "deposit", order.amount_minor // 2)


def deliver(session: Session, number: str, *, request_body: bytes, policy: str) -> Delivery:
    """Store the delivery that the customer confirms, and the attestation of the confirmation."""
    order = session.get_one(Order, number)
    attestation = _attest(session, order, "deliver", request_body, policy)
    delivery = Delivery(order_number=number, attestation_id=attestation.id)
    session.add(delivery)
    return delivery


def settle(session: Session, number: str) -> OutboxItemRecord:
    """Settle an order that was delivered: mark it and enqueue the rest of the payment.

    Raises InstructionStateForbids (P7404) if the order is not approved.
    """
    session.get_one(Delivery, number)
    order = session.get_one(Order, number)
    order.state = "SETTLED"
    return _enqueue(session, order, "rest", order.amount_minor - order.amount_minor // 2)


def _attest(
    session: Session, order: Order, act: str, request_body: bytes, policy: str
) -> AttestationRecord:
    return AttestationRepository(session).append(
        NewAttestation(
            caller_identity=order.customer,
            idempotency_key=f"{act}/{order.number}",
            payload_hash=sha256(request_body).hexdigest(),
            policy_version_id=policy,
        )
    )


def _enqueue(session: Session, order: Order, part: str, amount_minor: int) -> OutboxItemRecord:
    return OutboxRepository(session).enqueue(
        NewOutboxItem(
            instruction_id=order.instruction_id,
            participant_id=order.customer,
            idempotency_key=f"{order.number}/{part}",
            rail_type="FPS",
            payload={"amount_minor": amount_minor, "currency": CURRENCY},
        )
    )
