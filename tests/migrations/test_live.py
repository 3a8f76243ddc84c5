"""Upgrades beside live traffic: nobody waits behind one for longer than its lock_timeout, nobody
is refused for it, and one that gives up leaves nothing and may be run again."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from tools import scratch

from orchestration import schema
from orchestration.records import NewAttestation, NewOutboxItem
from orchestration.repo import AttestationRepository, OutboxRepository
from tests.migrations.conftest import picture
from tests.migrations.operator import alembic, ended, ini, on_the_page
from tests.support import Connect, activate_policy, connect, digest, new_instruction_id, scalar

PATIENCE_SECONDS = 60.0

# What a release might bring: a table, then a change of the busiest one.
BUSY_REVISION = """
from alembic import op

revision = "busy"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    op.execute("SET LOCAL ROLE symphony_owner")
    op.execute("CREATE TABLE orchestration.of_the_release ()")
    op.execute("ALTER TABLE orchestration.payment_outbox_pending ADD COLUMN of_the_release text")
    op.execute("RESET ROLE")


def downgrade():
    op.execute("DROP TABLE orchestration.of_the_release")
    op.execute("ALTER TABLE orchestration.payment_outbox_pending DROP COLUMN of_the_release")
"""
WAITING = """
SELECT count(*)
FROM pg_catalog.pg_locks
WHERE NOT granted
  AND mode = 'AccessExclusiveLock'
  AND relation = 'orchestration.payment_outbox_pending'::regclass
"""


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """alembic.ini of a release with one more revision."""
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "busy.py").write_text(BUSY_REVISION.format(head=schema.REVISION), "utf-8")
    return ini(tmp_path, versions)


def version(database: scratch.Database) -> str:
    with connect(database.url) as connection:
        return str(scalar(connection, "SELECT version_num FROM orchestration.alembic_version"))


def await_waiting(database: scratch.Database) -> None:
    """Until the upgrade queues for the busy table, and others behind it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with connect(database.url) as observer:
        while not scalar(observer, WAITING):
            assert time.monotonic() < deadline, "the upgrade waits for nothing"
            time.sleep(0.005)


@contextmanager
def traffic(engine: Callable[[str], Engine]) -> Iterator[list[int]]:
    """Callers that attest, a service that enqueues, and a worker that claims, by engines with our
    timeouts, until the block ends; fails where one of them was refused. Yields what each has
    committed."""
    over = threading.Event()
    roles = ["ingest", "ingest", "executor", "executor"]
    committed = [0] * len(roles)
    engines = {role: engine(role) for role in roles}

    def work(place: int) -> None:
        role = roles[place]
        while not over.is_set():
            with Session(engines[role]) as session:
                if role == "ingest":
                    attest(session, f"caller-{place}", committed[place])
                elif place % 2:
                    enqueue(session, f"caller-{place}", committed[place])
                else:
                    claim(session, f"worker-{place}")
                session.commit()
            committed[place] += 1

    with ThreadPoolExecutor(len(roles)) as threads:
        futures: list[Future[None]] = [threads.submit(work, place) for place in range(len(roles))]
        try:
            yield committed
        finally:
            over.set()
        for future in futures:
            future.result()


def attest(session: Session, caller: str, number: int) -> None:
    AttestationRepository(session).append(
        NewAttestation(
            caller_identity=caller,
            idempotency_key=str(number),
            payload_hash=digest(number),
            policy_version_id="v1",
        )
    )


def enqueue(session: Session, caller: str, number: int) -> None:
    OutboxRepository(session).enqueue(
        NewOutboxItem(
            instruction_id=new_instruction_id(),
            participant_id="bank-a",
            idempotency_key=f"{caller}/{number}",
            rail_type="rail",
            payload={},
        )
    )


def claim(session: Session, worker: str) -> None:
    OutboxRepository(session).claim(worker, batch_size=2, lease=timedelta(minutes=10))


@contextmanager
def in_a_long_transaction(engine: Engine) -> Iterator[None]:
    """A worker that claims and does not commit."""
    with Session(engine) as session:
        claim(session, "slow")
        # The gate has bounded its idle time.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield
        session.commit()


@pytest.fixture
def policy(login: Callable[[str], Connect]) -> None:
    activate_policy(login("control"))


@pytest.mark.instructed
@pytest.mark.usefixtures("policy")
def test_an_upgrade_passes_through_live_traffic(
    database: scratch.Database, engine: Callable[[str], Engine], release: Path
) -> None:
    with traffic(engine) as committed:
        upgrade = alembic("-c", str(release), "upgrade", "head", database_url=database.url)
        told = "".join(ended(upgrade))
    assert upgrade.returncode == 0, told
    assert version(database) == "busy"
    assert all(committed)


@pytest.mark.instructed
@pytest.mark.usefixtures("policy")
def test_traffic_flows_past_an_upgrade_that_waits_until_it_gives_up_and_it_may_be_run_again(
    database: scratch.Database, engine: Callable[[str], Engine], release: Path
) -> None:
    before = picture(database.url)
    with in_a_long_transaction(engine("executor")), traffic(engine) as committed:
        upgrade = alembic("-c", str(release), "upgrade", "head", database_url=database.url)
        await_waiting(database)
        when_it_waited = list(committed)
        out, err = ended(upgrade, within=PATIENCE_SECONDS)
        # The slow worker has not committed: who queued behind the upgrade went before that.
        assert all(now > then for now, then in zip(committed, when_it_waited, strict=True))
    assert upgrade.returncode != 0
    [said] = [line for line in out.splitlines() if line.startswith("FAILED: ")]
    assert on_the_page(said.removeprefix("FAILED: "))
    assert "Traceback" not in out + err
    assert picture(database.url) == before, "nothing is half done"
    assert version(database) == schema.REVISION

    again = alembic("-c", str(release), "upgrade", "head", database_url=database.url)
    told = "".join(ended(again))
    assert again.returncode == 0, told
    assert version(database) == "busy"


@pytest.mark.instructed
@pytest.mark.usefixtures("policy")
def test_an_upgrade_goes_through_once_the_transaction_in_its_way_ends(
    database: scratch.Database, engine: Callable[[str], Engine], release: Path
) -> None:
    with in_a_long_transaction(engine("executor")):
        upgrade = alembic("-c", str(release), "upgrade", "head", database_url=database.url)
        assert upgrade.stderr is not None
        said = iter(upgrade.stderr.readline, "")
        assert any("attempt 2 of " in line for line in said)
    told = "".join(ended(upgrade))
    assert upgrade.returncode == 0, told
    assert version(database) == "busy"


def test_the_head_itself_gives_up_before_a_transaction_of_control(
    database: scratch.Database, connections: Callable[..., Connect]
) -> None:
    """Every revision writes into the audit log, whose head a rotation holds until it commits."""
    scratch.downgrade(database.url, "-1")
    start = version(database)
    before = picture(database.url)
    control = connections(database.as_role("control"))
    with control.transaction():
        activate_policy(control, "v1")
        control.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        upgrade = alembic("upgrade", "head", database_url=database.url)
        out, err = ended(upgrade, within=PATIENCE_SECONDS)
        assert upgrade.returncode != 0
        assert "run the command again to continue" in out
        assert "Traceback" not in out + err
        assert (version(database), picture(database.url)) == (start, before)
    scratch.upgrade(database.url)
    assert picture(database.url) == schema.expected()
