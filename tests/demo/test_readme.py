"""README.md and docs/getting-started.md: their SQL and Python run as they are printed there, and
psql prints the refusals of the README."""

import logging
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from uuid import UUID

import pytest
from sqlalchemy import URL, Uuid, create_engine, pool, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tools import scratch

from orchestration import database as engines
from orchestration.errors import LastActivePolicy
from orchestration.records import (
    Completion,
    InstructionRecord,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
)
from orchestration.repo import (
    AttestationRepository,
    InstructionRepository,
    KillSwitchRepository,
    OutboxRepository,
)
from orchestration.vocabulary import CompletionState, KillSwitchScope, Outcome
from tests.support import activate_policy, connect, digest, documented

README = (scratch.ROOT / "README.md").read_text("utf-8")
GUIDE = documented("getting-started.md")
PRINTED = re.compile(r"^payments=([#>]) (.+;)\n((?:ERROR|DETAIL|HINT): .*\n)+", re.MULTILINE)
IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

pytestmark = pytest.mark.own_cluster


class HostBase(DeclarativeBase):
    pass


class Payment(HostBase):
    __tablename__ = "payments"
    __table_args__ = ({"schema": "public"},)

    instruction_id: Mapped[UUID] = mapped_column(Uuid(), primary_key=True)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


@pytest.fixture
def database() -> Iterator[URL]:
    """A migrated database on a server of its own: the logins of the page have fixed names."""
    with scratch.own_server({"fsync": "off"}) as at:
        url = scratch.create_database(at, scratch.PREFIX + "readme")
        scratch.upgrade(url)
        with scratch.maintenance(url) as connection:
            HostBase.metadata.create_all(connection)
            connection.exec_driver_sql(blocks(GUIDE, "sql")[0])
        yield url


@pytest.fixture(autouse=True)
def unpooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages keep their engines; here nothing may stay open."""
    unpooled = partial(engines.create_engine, poolclass=pool.NullPool)
    monkeypatch.setattr(engines, "create_engine", unpooled)


def login(database: URL, name: str) -> URL:
    return database.set(username=name, password="...")


def authorized(database: URL) -> InstructionRecord:
    with connect(login(database, "payments_policy")) as control:
        activate_policy(control, "v1")
    with sessions(login(database, "payments_ingest"))() as session:
        attestation = AttestationRepository(session).append(
            NewAttestation(
                caller_identity="KESTREL",
                idempotency_key="request-1",
                payload_hash=digest("request"),
                policy_version_id="v1",
            )
        )
        received = InstructionRepository(session).receive(
            NewInstruction(
                participant_id="KESTREL",
                idempotency_key="PO-20481",
                instruction_type="pain.001",
                end_to_end_id="PO-20481",
                amount_minor=1999,
                currency="GBP",
                debtor_account="GB33BUKB20201555555555",
                creditor_account="GB94BARC10201530093459",
                payload={},
                attestation_id=attestation.id,
                policy_version_id="v1",
            )
        )
        session.commit()
    with sessions(login(database, "payments_worker"))() as session:
        instruction = InstructionRepository(session).authorize(received.id, version=1)
        session.commit()
    return instruction


def sessions(url: URL) -> sessionmaker[Session]:
    return sessionmaker(engines.create_engine(url))


def test_the_guide_leads_to_a_dispatched_payment(database: URL) -> None:
    sent: list[str] = []

    def send(payload: object, *, key: str) -> str:
        sent.append(key)
        return "R-1"

    names = {
        "ingest_url": login(database, "payments_ingest"),
        "executor_url": login(database, "payments_worker"),
        "control_url": login(database, "payments_policy"),
        "payment": Payment(),
        "rail": SimpleNamespace(send=send),
        "log": logging.getLogger(__name__),
        "policy_document": b"policy",
        "request_body": b"request",
    }
    policy, attest, authorize, claim, end, translation = blocks(GUIDE, "python")
    for block in (policy, attest, authorize, claim, end):
        exec(block, names)

    assert sent == ["PO-20481"]
    with scratch.maintenance(database) as connection:
        ended = connection.execute(text("SELECT state FROM orchestration.payment_outbox_status"))
        assert ended.scalars().all() == ["DISPATCHED"]
        chain = connection.execute(text("SELECT chain_seq FROM orchestration.ingress_attestations"))
        assert chain.scalars().all() == [1]
        assert connection.scalar(text("SELECT count(*) FROM public.payments")) == 1

    hosts = create_engine(names["control_url"], poolclass=pool.NullPool)
    exec(translation, {"engine": hosts})
    with hosts.connect() as connection, pytest.raises(LastActivePolicy):
        connection.execute(text("SELECT orchestration.retire_policy_version('v1')"))


def test_the_readme_enqueues_in_the_caller_s_session(database: URL) -> None:
    instruction = authorized(database)
    with scratch.maintenance(database) as connection:
        connection.exec_driver_sql("GRANT INSERT ON public.payments TO payments_worker")
    [enqueue] = blocks(README, "python")
    assert len([line for line in enqueue.splitlines() if line]) == 8
    names = {
        "Session": Session,
        "engine": engines.create_engine(login(database, "payments_worker")),
        "payment": Payment(instruction_id=instruction.id),
        "instruction": instruction,
    }
    exec(enqueue, names)
    with scratch.maintenance(database) as connection:
        paid = connection.execute(
            text(
                "SELECT p.instruction_id, s.idempotency_key, s.state FROM public.payments p"
                " JOIN orchestration.payment_outbox_status s USING (instruction_id)"
            )
        )
        assert paid.all() == [(instruction.id, "PO-20481", "PENDING")]


def test_psql_prints_the_refusals_of_the_readme(database: URL) -> None:
    instruction = authorized(database)
    with sessions(login(database, "payments_worker"))() as session:
        outbox = OutboxRepository(session)
        outbox.enqueue(
            NewOutboxItem(
                instruction_id=instruction.id,
                participant_id="KESTREL",
                idempotency_key="PO-20481",
                rail_type="FPS",
                payload={},
            )
        )
        [item] = outbox.claim("worker", batch_size=1, lease=timedelta(minutes=1))
        outbox.complete(item, Completion(state=CompletionState.FAILED, outcome=Outcome.UNKNOWN))
        session.commit()
    with sessions(login(database, "payments_policy"))() as session:
        KillSwitchRepository(session).engage(
            scope=KillSwitchScope.DISPATCH, reason="a drill", engaged_by="the desk"
        )
        session.commit()
    [printed] = blocks(README, "console")
    refusals = list(PRINTED.finditer(printed))
    assert "\n".join(one[0] for one in refusals) == printed
    urls = (database, login(database, "payments_policy"), login(database, "payments_worker"))
    for refusal, url in zip(refusals, urls, strict=True):
        assert (refusal[1] == "#") == (url is database), "# is the prompt of a superuser"
        statement = refusal[2]
        prompt = f"payments={refusal[1]} {statement}\n"
        found = prompt + psql(url, statement, outbox_id=item.outbox_id)
        assert anonymous(found) == anonymous(refusal[0])


def anonymous(printed: str) -> str:
    """Every identifier is another one in each database."""
    return IDENTIFIER.sub("...", printed)


def psql(url: URL, statement: str, **variables: object) -> str:
    """The SQLSTATE, message, detail and hint that psql prints in its verbose form."""
    settings = {"VERBOSITY": "verbose", "SHOW_CONTEXT": "never", **variables}
    ran = subprocess.run(
        [
            scratch.programs() / "psql",
            "--no-psqlrc",
            f"--dbname={url.set(drivername='postgresql').render_as_string(hide_password=False)}",
            *(f"--set={name}={value}" for name, value in settings.items()),
        ],
        input=statement,
        capture_output=True,
        text=True,
        check=False,
    )
    told = ran.stderr.splitlines(keepends=True)
    return "".join(line for line in told if line.startswith(("ERROR:", "DETAIL:", "HINT:")))
