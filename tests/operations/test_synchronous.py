"""A primary with a synchronous standby: what COMMIT guarantees, and what remains after a
failover."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import errors, transactions
from orchestration.database import create_engine
from orchestration.records import NewPolicyVersion, PolicyVersionRecord
from orchestration.repo import PolicyVersionRepository
from orchestration.testing import _supervisor
from orchestration.transactions import run_in_transaction
from tests.operations.test_replication import await_true
from tests.support import Connect, activate_policy, connect, digest, scalar

pytestmark = [
    pytest.mark.own_cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="the standby runs the binaries of /proc"),
]

PASSWORD = "a password of this test"
SETTINGS = {"fsync": "off", "autovacuum": "off", "max_prepared_transactions": "4"}


@dataclass
class Pair:
    """A primary whose COMMIT waits for its standby, and logins that exist on both."""

    primary: URL
    standby: URL
    folder: Path
    binaries: Path
    account: int | None
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self.binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_supervisor.environment(),
                user=self.account,
                group=self.account,
                extra_groups=None if self.account is None else [],
                preexec_fn=_supervisor.end_with_parent(),
            )

    def start_standby(self, **settings: str) -> None:
        settings |= SETTINGS | {"unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in settings.items()]
        at = ("-D", str(self.folder / "data"), "-p", str(self.standby.port))
        self.running.append(self.spawn("postgres", *at, *options))
        status = self.folder / "data" / "postmaster.pid"
        while self.running[-1].poll() is None:
            if status.exists() and status.read_text().endswith(("ready   \n", "standby \n")):
                return
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def stop_standby(self) -> None:
        _supervisor.stop(self.running.pop())

    def as_control(self, url: URL) -> URL:
        return url.set(username="control_login", password=PASSWORD)

    def promote(self) -> None:
        with connect(self.standby) as there:
            assert scalar(there, "SELECT pg_catalog.pg_promote()")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as opened:
        at = opened.enter_context(scratch.own_server(SETTINGS))
        url = scratch.create_database(at, scratch.PREFIX + "synchronous")
        scratch.upgrade(url)
        with scratch.maintenance(url) as connection:
            scratch.create_login(connection, "control_login", PASSWORD, "symphony_control")
        with connect(url) as superuser:
            activate_policy(superuser, "v1")
            data = scalar(superuser, "SHOW data_directory")
        postmaster = int((Path(data) / "postmaster.pid").read_text().splitlines()[0])
        folder = opened.enter_context(_directory())
        made = Pair(
            primary=url,
            standby=url.set(port=_supervisor.choose_port(0)),
            folder=folder,
            binaries=Path(os.readlink(f"/proc/{postmaster}/exe")).parent,
            account=_supervisor.UNPRIVILEGED if os.geteuid() == 0 else None,
        )
        opened.callback(lambda: [_supervisor.stop(one) for one in made.running])
        source = url.set(drivername="postgresql").render_as_string(hide_password=False)
        copied = made.spawn(
            *("pg_basebackup", "--dbname", source, "--pgdata", str(folder / "data")),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
        assert copied.wait(60) == 0, (folder / "log").read_text()
        made.start_standby()
        with connect(url) as superuser:
            await_true(superuser, "SELECT count(*) = 1 FROM pg_catalog.pg_stat_replication")
            superuser.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            superuser.execute("SELECT pg_catalog.pg_reload_conf()")
            await_true(superuser, "SELECT sync_state = 'sync' FROM pg_catalog.pg_stat_replication")
        yield made


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=scratch.PREFIX) as name:
        _supervisor.give_away(Path(name))
        yield Path(name)


def new(id: str) -> NewPolicyVersion:
    return NewPolicyVersion(id=id, description="test", checksum=digest(id), created_by="test")


def rotate(engine: Engine, id: str) -> None:
    with Session(engine) as session:
        PolicyVersionRepository(session).rotate(new(id), grace=timedelta(0))
        session.commit()


def rotate_in_work(session: Session, id: str) -> PolicyVersionRecord:
    return PolicyVersionRepository(session).rotate(new(id), grace=timedelta(0))


def rotate_prepared(engine: Engine, id: str) -> None:
    """COMMIT PREPARED of a transaction that was prepared without waiting."""
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text("SET LOCAL synchronous_commit = local"))
        rotate_in_work(Session(connection), id)
        transaction.prepare()
        transaction.commit()


def prepare(engine: Engine, id: str) -> None:
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        rotate_in_work(Session(connection), id)
        transaction.prepare()


def outcome(
    superuser: Connect, act: Callable[[], object], end: str, *, waiting: tuple[str, ...] = ("",)
) -> BaseException | None:
    """Return what `act` raises if this server function ends its waits for the standby, in the
    statements that begin with these words."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    for statement in waiting:
        waits = (
            "FROM pg_catalog.pg_stat_activity"
            f" WHERE wait_event = 'SyncRep' AND starts_with(query, '{statement}')"
        )
        await_true(superuser, f"SELECT count(*) = 1 {waits}")
        superuser.execute(f"SELECT pg_catalog.{end}(pid) {waits}".encode())
    thread.join()
    [found] = raised
    return found


def test_a_commit_whose_wait_is_ended_is_unknown_and_is_gone_after_a_failover(pair: Pair) -> None:
    url = pair.as_control(pair.primary)
    with ExitStack() as opened:

        def engine(make: Callable[..., Engine], **options: Any) -> Engine:
            made = make(url, **options)
            opened.callback(made.dispose)
            return made

        ours, host = engine(create_engine), engine(plain_engine)
        autocommit = engine(create_engine, isolation_level="AUTOCOMMIT")
        hosts_autocommit = engine(plain_engine, isolation_level="AUTOCOMMIT")

        def in_unit(engine: Engine) -> Callable[[str], object]:
            factory = sessionmaker(engine)
            return lambda id: run_in_transaction(factory, lambda s: rotate_in_work(s, id))

        ways: dict[str, Callable[[str], object]] = {
            "commit": lambda id: rotate(ours, id),
            "autocommit": lambda id: rotate(autocommit, id),
            "prepared": lambda id: rotate_prepared(ours, id),
            "unit": in_unit(ours),
            "hosts-unit": in_unit(host),
            "hosts-unit-in-autocommit": in_unit(hosts_autocommit),
        }
        rotate(ours, "before")
        assert run_in_transaction(sessionmaker(host), lambda s: rotate_in_work(s, "too"))

        superuser = opened.enter_context(connect(pair.primary))
        pair.stop_standby()
        for way, act in ways.items():
            error = outcome(superuser, lambda act=act, way=way: act(way), "pg_cancel_backend")
            assert isinstance(error, errors.CommitOutcomeUnknown), (way, error)
            assert (error.sqlstate, error.retry) == ("01000", errors.Retry.AFTER_RESOLUTION)
        for way in ("commit", "hosts-unit"):
            error = outcome(
                superuser, lambda way=way: ways[way](f"{way} ended"), "pg_terminate_backend"
            )
            assert isinstance(error, errors.CommitOutcomeUnknown), (way, error)

        # Later statements on the same connection are not affected, and a reader never waits.
        with Session(ours) as session:
            session.execute(text("SET LOCAL synchronous_commit = local"))
            rotate_in_work(session, "local")
            session.commit()
        for factory in (sessionmaker(ours), sessionmaker(host)):
            seen = run_in_transaction(factory, lambda s: PolicyVersionRepository(s).active())
            assert seen is not None
            assert seen.id == "local"
        error = outcome(
            superuser,
            lambda: prepare(ours, "prepare"),
            "pg_cancel_backend",
            waiting=("PREPARE TRANSACTION", "ROLLBACK PREPARED"),
        )
        assert isinstance(error, errors.CommitOutcomeUnknown)

        pair.start_standby(primary_conninfo="")
        pair.promote()
        with connect(pair.standby) as there:
            found = there.execute("SELECT id FROM orchestration.policy_versions ORDER BY id")
            assert found.fetchall() == [("before",), ("too",), ("v1",)]


def test_a_unit_with_a_deadline_goes_on_through_a_failover(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LONGEST_WAIT_SECONDS", 0.05)
    both = [f"{one.host}:{one.port}" for one in (pair.primary, pair.standby)]
    url = pair.as_control(pair.primary).set(host=None, port=None)
    engine = create_engine(
        url.update_query_dict({"host": both, "target_session_attrs": "read-write"})
    )
    with connect(pair.primary) as superuser:
        data = Path(scalar(superuser, "SHOW data_directory"))
    postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
    tries = 0

    def factory() -> Session:
        nonlocal tries
        tries += 1
        if tries == transactions.ATTEMPTS + 3:
            pair.promote()
        return Session(engine)

    def work(session: Session) -> PolicyVersionRecord:
        made = rotate_in_work(session, "v2")
        if tries == 1:
            os.kill(postmaster, signal.SIGQUIT)
        return made

    made = run_in_transaction(factory, work, deadline=timedelta(minutes=1), replayable=True)
    engine.dispose()
    assert tries > transactions.ATTEMPTS
    with connect(pair.standby) as there:
        active = "SELECT id FROM orchestration.policy_versions WHERE status = 'ACTIVE'"
        assert scalar(there, active) == made.id == "v2"
