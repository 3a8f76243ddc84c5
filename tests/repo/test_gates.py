"""A service that stops in a gated transaction, on every kind of engine: the others continue."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import errors
from orchestration.database import create_engine
from orchestration.records import NewAttestation, NewPolicyVersion
from orchestration.repo import (
    AttestationRepository,
    KillSwitchRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from orchestration.transactions import run_in_transaction
from tests.support import POOLED, Connect, digest

pytestmark = [pytest.mark.instructed, pytest.mark.invariant("INV-KIL-002")]

KINDS = ("ours", "a host's")
SHORT = "300ms"
"""A bound that the client sets, shorter than the ten seconds of the gates."""


@pytest.fixture
def factory(database: scratch.Database) -> Iterator[Callable[[str, str], sessionmaker[Session]]]:
    """Sessions of a kind of engine, as a login: `factory("ours", "control")`."""
    with ExitStack() as opened:

        def make(kind: str, role: str) -> sessionmaker[Session]:
            url = database.as_role(role)
            made: Engine = (
                create_engine(url, pooler=POOLED)
                if kind == "ours"
                else plain_engine(url, connect_args={"prepare_threshold": None})
            )
            opened.callback(made.dispose)
            return sessionmaker(made)

        yield make


def attest(session: Session, key: str = "k") -> None:
    AttestationRepository(session).append(
        NewAttestation(
            caller_identity=key,
            idempotency_key=key,
            payload_hash=digest(key),
            policy_version_id="instructions",
        )
    )


def engage(session: Session) -> None:
    KillSwitchRepository(session).engage(scope="RAIL", target="x", reason="test", engaged_by="test")


def rotate(session: Session) -> None:
    new = NewPolicyVersion(id="v2", description="x", checksum=digest("v2"), created_by="test")
    PolicyVersionRepository(session).rotate(new, grace=timedelta(hours=1))


def revoke(session: Session) -> None:
    RevocationRepository(session).revoke_token(
        token_hash=digest("t"), reason_code="unspecified", revoked_by="test"
    )


CHANGES: dict[str, Callable[[Session], None]] = {
    "engaging": engage,
    "rotating": rotate,
    "revoking": revoke,
}


@pytest.mark.parametrize("act", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_gets_in_behind_a_service_that_has_stopped(
    factory: Callable[[str, str], sessionmaker[Session]], kind: str, act: str
) -> None:
    with factory(kind, "ingest")() as stopped, factory(kind, "control")() as control:
        stopped.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{SHORT}'"))
        attest(stopped)
        CHANGES[act](control)
        control.commit()
        with pytest.raises((errors.ConnectionLost, DBAPIError)):
            stopped.execute(text("SELECT 1"))
        stopped.rollback()
        attest(stopped)


@pytest.mark.parametrize("kind", KINDS)
def test_taking_a_gate_bounds_idle_time_on_every_engine(
    factory: Callable[[str, str], sessionmaker[Session]], kind: str
) -> None:
    with factory(kind, "ingest")() as session:
        bound = text("SHOW idle_in_transaction_session_timeout")
        before = session.scalar(bound)
        attest(session)
        assert session.scalar(bound) == "10s" != before
        session.rollback()
        assert session.scalar(bound) == before


def test_a_unit_that_stopped_is_run_again_and_finds_the_switch_engaged(
    factory: Callable[[str, str], sessionmaker[Session]], superuser: Connect
) -> None:
    tries: list[int] = []
    held, engaged = threading.Event(), threading.Event()

    def work(session: Session) -> None:
        tries.append(1)
        session.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{SHORT}'"))
        attest(session)
        held.set()
        assert engaged.wait(60)
        attest(session, "second")

    def engage_all(session: Session) -> None:
        KillSwitchRepository(session).engage(scope="INGEST", reason="test", engaged_by="test")

    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(run_in_transaction, factory("ours", "ingest"), work)
        assert held.wait(60)
        run_in_transaction(factory("ours", "control"), engage_all)
        engaged.set()
        with pytest.raises(errors.KillSwitchEngaged):
            stopped.result(60)
    assert len(tries) == 2
    found = superuser.execute(
        "SELECT count(*) FROM orchestration.ingress_attestations WHERE caller_identity = 'k'"
    )
    assert found.fetchone() == (0,)
