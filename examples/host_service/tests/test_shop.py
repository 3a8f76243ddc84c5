"""Tests the shop on a migrated database that DATABASE_URL names, with the logins of logins.sql."""

import os
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import pytest
from sqlalchemy import create_engine, make_url, pool, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from orchestration import errors, schema
from orchestration.records import NewPolicyVersion
from orchestration.repo import InstructionRepository, OutboxRepository, PolicyVersionRepository
from shop import service
from shop.database import sessions
from shop.models import Delivery, Order

MIGRATOR = make_url(os.environ["DATABASE_URL"])
POLICY = "v1"


def as_login(name: str) -> Session:
    return sessions(MIGRATOR.set(username=name, password="..."))()


def web() -> Session:
    return as_login("shop_web")


def desk() -> Session:
    return as_login("shop_desk")


@pytest.fixture(scope="module", autouse=True)
def policy() -> None:
    with as_login("shop_compliance") as session:
        PolicyVersionRepository(session).rotate(
            NewPolicyVersion(
                id=POLICY,
                description="who may order",
                checksum=sha256(b"who may order").hexdigest(),
                created_by="compliance",
            ),
            grace=timedelta(0),
        )
        session.commit()


@pytest.fixture
def owner() -> Iterator[Session]:
    """What the migrating login may do as the library's owner: the triggers refuse it too."""
    with sessions(MIGRATOR)() as session:
        session.execute(text("SET LOCAL ROLE symphony_owner"))
        yield session


def order(number: str) -> Order:
    return Order(number=number, customer="KESTREL", amount_minor=1999)


def place(session: Session, new: Order) -> Order:
    return service.place(
        session,
        new,
        account="GB33BUKB20201555555555",
        request_body=b"an order",
        policy=POLICY,
    )


def deliver(session: Session, number: str) -> None:
    service.deliver(session, number, request_body=b"it is here", policy=POLICY)


def delivered(number: str) -> str:
    with web() as session:
        deliver(session, number)
        session.commit()
    return number


def placed(number: str) -> str:
    with web() as session:
        place(session, order(number))
        session.commit()
    return number


def approved(number: str) -> str:
    with desk() as session:
        service.approve(session, placed(number), version=1)
        session.commit()
    return number


def attested(number: str) -> list[str]:
    """Return the attested acts of an order."""
    with web() as session:
        keys = session.scalars(
            text(
                "SELECT idempotency_key FROM orchestration.ingress_attestation_status"
                " WHERE idempotency_key LIKE '%/' || :number ORDER BY chain_seq"
            ),
            {"number": number},
        )
        return [str(key).partition("/")[0] for key in keys]


def enqueued(number: str) -> list[str]:
    """Return the parts of an order's payment that are in the outbox."""
    with web() as session:
        keys = session.scalars(
            text(
                "SELECT idempotency_key FROM orchestration.payment_outbox_status"
                " WHERE idempotency_key LIKE :number || '/%' ORDER BY sequence_id"
            ),
            {"number": number},
        )
        return [str(key).partition("/")[2] for key in keys]


def test_the_schema_is_as_the_installed_library_says() -> None:
    with create_engine(MIGRATOR, poolclass=pool.NullPool).connect() as connection:
        assert schema.compare(schema.expected(), schema.read(connection)) == []


def test_an_order_its_attestation_and_its_instruction_commit_together() -> None:
    with web() as session:
        instruction_id = place(session, order("PO-1")).instruction_id
        session.commit()
    with web() as session:
        assert session.get_one(Order, "PO-1").instruction_id == instruction_id
        instruction = InstructionRepository(session).get(instruction_id)
        assert instruction is not None
        assert (instruction.state, instruction.end_to_end_id) == ("RECEIVED", "PO-1")
    assert attested("PO-1") == ["place"]


def test_the_authorization_the_order_and_the_deposit_commit_together() -> None:
    placed("PO-2")
    with desk() as session:
        item = service.approve(session, "PO-2", version=1)
        session.commit()
    with desk() as session:
        found = session.get_one(Order, "PO-2")
        assert found.state == "APPROVED"
        instruction = InstructionRepository(session).get(found.instruction_id)
        assert instruction is not None
        assert instruction.state == "AUTHORIZED"
        pending = OutboxRepository(session).get(item.outbox_id)
        assert pending is not None
        assert pending.state == "PENDING"
    assert enqueued("PO-2") == ["deposit"]


def test_the_delivery_and_its_attestation_commit_together() -> None:
    delivered(approved("PO-3"))
    with web() as session:
        assert session.get(Delivery, "PO-3") is not None
    assert attested("PO-3") == ["place", "deliver"]


def test_the_order_and_the_rest_of_its_payment_commit_together() -> None:
    delivered(approved("PO-6"))
    with desk() as session:
        service.settle(session, "PO-6")
        session.commit()
    with desk() as session:
        assert session.get_one(Order, "PO-6").state == "SETTLED"
    assert enqueued("PO-6") == ["deposit", "rest"]


def test_a_refusal_of_the_library_s_takes_the_whole_unit_back() -> None:
    delivered(placed("PO-4"))
    with desk() as session, pytest.raises(errors.InstructionStateForbids) as refused:
        service.settle(session, "PO-4")
    assert refused.value.sqlstate == "P7404"
    with desk() as session:
        assert session.get_one(Order, "PO-4").state == "PLACED"
    assert enqueued("PO-4") == []


def test_a_refusal_of_the_shop_s_own_takes_the_whole_unit_back() -> None:
    delivered(approved("PO-5"))
    with web() as session:
        session.add(Delivery(order_number="PO-5", attestation_id=UUID(int=0)))
        with pytest.raises(IntegrityError):
            place(session, order("PO-5-more"))
    with web() as session:
        assert session.get(Order, "PO-5-more") is None
    assert attested("PO-5-more") == []


def test_the_shop_s_own_23505_passes_unchanged() -> None:
    placed("PO-7")
    with web() as session:
        place(session, order("PO-7"))
        with pytest.raises(IntegrityError) as refused:
            session.commit()
    assert getattr(refused.value.orig, "sqlstate", None) == "23505"


def test_the_shop_s_own_p0001_passes_unchanged() -> None:
    placed("PO-8")
    with desk() as session:
        session.get_one(Order, "PO-8").amount_minor += 1
        with pytest.raises(DBAPIError) as refused:
            session.commit()
    assert getattr(refused.value.orig, "sqlstate", None) == "P0001"
    assert "keeps its amount" in str(refused.value.orig)


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        ("DELETE FROM orchestration.ingress_attestations", errors.AppendOnlyViolation),
        ("INSERT INTO orchestration.policy_gate DEFAULT VALUES", errors.UniqueViolation),
    ],
    ids=["P0001", "23505"],
)
def test_the_same_codes_of_the_library_s_come_typed_on_the_shop_s_engine(
    owner: Session, statement: str, wanted: type[errors.OrchestrationError]
) -> None:
    placed(f"PO-9-{wanted.__name__}")
    with pytest.raises(wanted) as refused:
        owner.execute(text(statement))
    assert refused.value.schema == "orchestration"
