"""What the shop does. Every act works in the caller's Session and leaves the commit to it: the
shop's rows and the library's are stored together, or none of them is.

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
    """A customer orders: the order, the attestation of the request and the instruction to pay.

    Raises the shop's own IntegrityError (23505) at the flush for a number that exists already.
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
    """The desk approves what it saw of the order: authorized, marked and the deposit enqueued.

    Raises SegregationOfDuties (P7405) for the login that placed it, StaleInstruction (P7403).
    """
    order = session.get_one(Order, number)
    InstructionRepository(session).authorize(order.instruction_id, version=version)
    order.state = "APPROVED"
    return _enqueue(session, order, "deposit", order.amount_minor // 2)


def deliver(session: Session, number: str, *, request_body: bytes, policy: str) -> Delivery:
    """The customer confirms the delivery: the delivery and the attestation of who confirmed it."""
    order = session.get_one(Order, number)
    attestation = _attest(session, order, "deliver", request_body, policy)
    delivery = Delivery(order_number=number, attestation_id=attestation.id)
    session.add(delivery)
    return delivery


def settle(session: Session, number: str) -> OutboxItemRecord:
    """The desk settles an order that was delivered: marked, and the rest of the payment enqueued.

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
