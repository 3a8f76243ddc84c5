"""A process is stopped inside a gated transaction, with the bound that the gate itself sets.

tests/repo/test_gates.py and tests/concurrency/test_gates.py show the same with shorter bounds.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
from sqlalchemy import URL, Engine
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.orm import Session, sessionmaker
from tools import pooler, scratch

from orchestration.database import create_engine
from orchestration.records import NewPolicyVersion
from orchestration.repo import (
    KillSwitchRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from orchestration.testing._supervisor import end_with_parent
from orchestration.transactions import run_in_transaction
from tests.support import Connect, backend, connect, digest

BOUND_SECONDS = 11
"""Ten seconds of idle time, and one second more."""

WORKER = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from orchestration.repo import AttestationRepository
from orchestration.records import NewAttestation

engine = create_engine(sys.argv[1], connect_args={"prepare_threshold": None})
with Session(engine) as session:
    new = NewAttestation(caller_identity="stopped", idempotency_key="k", payload_hash="0" * 64,
                         policy_version_id="instructions", token_hash="1" * 64)
    AttestationRepository(session).append(new)
    print("held", flush=True)
    sys.stdin.readline()
"""


HOLDERS = """
SELECT granted, pid, login, prepared_gid,
       transaction_started_at IS NOT NULL AND prepared_gid IS NOT NULL
FROM orchestration.gate_holders()
WHERE gate = 'kill_switch_gate'
"""


@pytest.fixture
def pooled(database: scratch.Database) -> Iterator[Callable[[URL], URL]]:
    """Route a URL of the server through PgBouncer."""
    with pooler.pgbouncer([database.url, *database.logins.values()]) as at:
        yield lambda url: url.set(host=at.host, port=at.port)


@pytest.mark.instructed
@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("where", ["directly", "through PgBouncer"])
def test_every_change_gets_in_behind_a_stopped_process_within_the_bound(
    database: scratch.Database, superuser: Connect, pooled: Callable[[URL], URL], where: str
) -> None:
    ingest, control = database.as_role("ingest"), database.as_role("control")
    reached = ingest if where == "directly" else pooled(ingest)
    with ExitStack() as opened:
        stopped = subprocess.Popen(
            [sys.executable, "-c", WORKER, reached.render_as_string(hide_password=False)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent(signal.SIGKILL),
        )
        opened.callback(stopped.communicate)
        opened.callback(stopped.kill)
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == "held\n"
        stopped.send_signal(signal.SIGSTOP)

        def factory(made: Engine) -> sessionmaker[Session]:
            opened.callback(made.dispose)
            return sessionmaker(made)

        ours = factory(create_engine(control))
        host = factory(plain_engine(control))
        behind_a_pooler = factory(create_engine(pooled(control), pooler=True))
        writing = factory(create_engine(ingest))

        def engage(sessions: sessionmaker[Session], rail: str) -> None:
            with sessions() as session:
                KillSwitchRepository(session).engage(
                    scope="RAIL", target=rail, reason="test", engaged_by="test"
                )
                session.commit()

        def rotate(session: Session) -> None:
            PolicyVersionRepository(session).rotate(
                NewPolicyVersion(
                    id="v2", description="x", checksum=digest("v2"), created_by="test"
                ),
                grace=timedelta(hours=1),
            )

        def revoke(session: Session) -> None:
            RevocationRepository(session).revoke_token(
                token_hash="1" * 64, reason_code="keyCompromise", revoked_by="test"
            )

        def write(session: Session) -> None:
            PolicyVersionRepository(session).require_accepted("instructions")

        with ThreadPoolExecutor(7) as threads:
            changes = [
                threads.submit(engage, ours, "ours"),
                threads.submit(engage, host, "a host's"),
                threads.submit(engage, behind_a_pooler, "pooler"),
                threads.submit(run_in_transaction, ours, rotate),
                threads.submit(run_in_transaction, behind_a_pooler, revoke),
            ]
            beside = threads.submit(run_in_transaction, writing, write)
            for change in (*changes, beside):
                change.result(BOUND_SECONDS)
    counted = superuser.execute(
        "SELECT (SELECT count(*) FROM orchestration.kill_switches),"
        " (SELECT count(*) FROM orchestration.revoked_tokens),"
        " (SELECT count(*) FROM orchestration.policy_versions WHERE id = 'v2'),"
        " (SELECT count(*) FROM orchestration.ingress_attestations"
        "  WHERE caller_identity = 'stopped')"
    )
    assert counted.fetchone() == (3, 1, 1, 0)


def test_a_prepared_transaction_that_holds_a_gate_is_named() -> None:
    with (
        scratch.own_server({"max_prepared_transactions": "2"}) as at,
        scratch.database(at) as database,
        connect(database.url) as owner,
        connect(database.as_role("auditor")) as auditor,
        connect(database.as_role("control")) as control,
    ):
        owner.execute("BEGIN")
        owner.execute("SELECT orchestration.share_gate('kill_switch_gate')")
        owner.execute("PREPARE TRANSACTION 'forgotten'")
        with ThreadPoolExecutor(1) as threads:
            engaging = threads.submit(
                control.execute, "SELECT FROM orchestration.engage_kill_switch('GLOBAL', 'test')"
            )
            while len(found := auditor.execute(HOLDERS).fetchall()) < 2:
                pass
            assert found == [
                (True, None, owner.info.user, "forgotten", True),
                (False, backend(control), control.info.user, None, False),
            ]
            owner.execute("ROLLBACK PREPARED 'forgotten'")
            engaging.result(BOUND_SECONDS)
