"""What the README shows is what happens: its SQL and its Python run as they stand there."""

import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from sqlalchemy import URL, Uuid, create_engine, pool, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tools import scratch

from orchestration import database as engines
from orchestration.errors import LastActivePolicy

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")

pytestmark = pytest.mark.own_cluster


class HostBase(DeclarativeBase):
    pass


class Payment(HostBase):
    __tablename__ = "payments"
    __table_args__ = ({"schema": "public"},)

    instruction_id: Mapped[UUID] = mapped_column(Uuid(), primary_key=True)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def database() -> Iterator[URL]:
    """A migrated database on a server of its own: the README's logins have fixed names."""
    with scratch.own_server({"fsync": "off"}) as at:
        url = scratch.create_database(at, scratch.PREFIX + "readme")
        scratch.upgrade(url)
        yield url


def test_the_examples_run_for_the_logins_that_the_readme_makes(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The README keeps its engines; here nothing may stay open.
    unpooled = partial(engines.create_engine, poolclass=pool.NullPool)
    monkeypatch.setattr(engines, "create_engine", unpooled)
    [logins] = blocks("sql")
    with scratch.maintenance(database) as connection:
        HostBase.metadata.create_all(connection)
        connection.exec_driver_sql(logins)

    def login(name: str) -> URL:
        return database.set(username=name, password="...")

    sent: list[str] = []

    def send(payload: object, *, key: str) -> str:
        sent.append(key)
        return "R-1"

    names = {
        "ingest_url": login("payments_ingest"),
        "executor_url": login("payments_worker"),
        "control_url": login("payments_policy"),
        "payment": Payment(),
        "rail": SimpleNamespace(send=send),
        "log": logging.getLogger(__name__),
        "policy_document": b"policy",
        "request_body": b"request",
    }
    example, policy, translation = blocks("python")
    imports = example.partition("\nwith ")[0]
    exec(imports + policy, names)
    exec(example, names)

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
