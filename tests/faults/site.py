"""A migrated database on a server that faults can be injected into, and the traffic on it."""

import itertools
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psycopg
from sqlalchemy import URL
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import database as engines
from orchestration.errors import CommitOutcomeUnknown, OrchestrationError
from orchestration.records import (
    InstructionRecord,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
)
from orchestration.repo import (
    AttemptLogRepository,
    AttestationRepository,
    InstructionRepository,
    OutboxRepository,
)
from orchestration.transactions import run_in_transaction
from orchestration.vocabulary import InstructionState
from tests.faults.journal import RAIL, Journal
from tests.faults.judge import Finding, judge
from tests.operations.restartable import Restartable
from tests.support import Connect, activate_policy, connect, digest, scalar

T = TypeVar("T")

LEASE = timedelta(seconds=1)
# Few enough that some items reach the ceiling, and end with an unknown outcome.
MAX_ATTEMPTS = 4
PATIENCE_SECONDS = 60.0
# Faster clients would fill the queue with more than the workers can send in the time of a scenario.
PAUSE_SECONDS = 0.05
ROOT = Path(__file__).resolve().parents[2]


class Undone(AssertionError):
    """The traffic did not end in time."""


@dataclass
class Site:
    """A database under test. The clients and workers connect to `through`."""

    server: Restartable
    database: scratch.Database
    journal: Journal
    through: tuple[str, int] | None = None
    pooler: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """The errors of the clients' statements and the unknown outcomes of their COMMITs, by class and
    SQLSTATE."""

    def url(self, role: str) -> URL:
        at = self.database.as_role(role)
        return at if self.through is None else at.set(host=self.through[0], port=self.through[1])

    def superuser(self) -> Connect:
        return connect(self.database.url)

    def pending(self) -> int:
        return self._count("SELECT count(*) FROM orchestration.payment_outbox_pending")

    def unknown(self) -> int:
        return self._count(
            "SELECT count(*) FROM orchestration.payment_outbox_attempts"
            " WHERE state = 'FAILED' AND outcome = 'UNKNOWN'"
        )

    def _count(self, query: str) -> int:
        # The server may still be recovering from the last kill.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self.superuser() as connection:
                    return int(str(scalar(connection, query)))
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def judge(self) -> list[Finding]:
        with self.superuser() as connection:
            return judge(connection, self.journal)


@contextmanager
def site(server: Restartable, folder: Path, *, tablespace: str | None = None) -> Iterator[Site]:
    name = scratch.PREFIX + "faults"
    url = scratch.create_database(server.server, name)
    if tablespace is not None:
        with scratch.maintenance(server.url) as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET TABLESPACE {tablespace}')
    scratch.upgrade(url)
    # Not scratch.logins: it drops the logins at the end, on a server that may no longer run.
    password = secrets.token_hex(16)
    with scratch.maintenance(server.url) as connection:
        for role in scratch.RUNTIME_ROLES:
            scratch.create_login(connection, f"faults_{role}", password, f"symphony_{role}")
    by_role = {
        role: url.set(username=f"faults_{role}", password=password)
        for role in scratch.RUNTIME_ROLES
    }
    made = Site(server, scratch.Database(url, by_role), Journal(folder / "journal"))
    with connect(made.database.as_role("control")) as control:
        activate_policy(control, "v1")
    yield made


class Client(threading.Thread):
    """A service that receives payments, authorizes them and enqueues their dispatch. After any
    error it repeats the call under the same idempotency keys, until the call succeeds or is found
    done."""

    def __init__(self, at: Site, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._site = at
        self._done = threading.Event()
        self._engines = {
            role: engines.create_engine(at.url(role), pooler=at.pooler)
            for role in ("ingest", "executor")
        }
        self._sessions = {role: sessionmaker(engine) for role, engine in self._engines.items()}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for number in itertools.count():
                if self._done.wait(PAUSE_SECONDS):
                    break
                self._pay(f"{self.name}-{number}")
        except BaseException as error:
            self.failure = error
        finally:
            for engine in self._engines.values():
                engine.dispose()

    def finish(self) -> None:
        self._done.set()
        self.join(PATIENCE_SECONDS)
        if self.is_alive():
            raise Undone(f"{self.name} has not finished")
        if self.failure is not None:
            raise self.failure

    def _pay(self, key: str) -> None:
        note = self._site.journal.note
        attestation, instruction = self._until("ingest", lambda one: receive(one, self.name, key))
        note("attested", id=attestation)
        note("received", id=instruction.id)
        outbox_id = self._until("executor", lambda one: dispatch(one, instruction))
        note("authorized", id=instruction.id)
        note("enqueued", id=outbox_id)

    def _until(self, role: str, work: Callable[[Session], T]) -> T:
        def count(error: OrchestrationError) -> None:
            self._site.errors[f"{type(error).__name__} {error.sqlstate}"] += 1

        def counted(session: Session) -> T:
            # run_in_transaction retries most errors without raising them.
            try:
                return work(session)
            except OrchestrationError as error:
                count(error)
                raise

        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return run_in_transaction(self._sessions[role], counted)
            except OrchestrationError as error:
                if isinstance(error, CommitOutcomeUnknown):
                    # It arises at COMMIT, after the work.
                    count(error)
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_SECONDS)


def receive(session: Session, participant: str, key: str) -> tuple[object, InstructionRecord]:
    attestation = AttestationRepository(session).append(
        NewAttestation(
            caller_identity=participant,
            idempotency_key=key,
            payload_hash=digest(key),
            policy_version_id="v1",
        )
    )
    instruction = InstructionRepository(session).receive(
        NewInstruction(
            participant_id=participant,
            idempotency_key=key,
            instruction_type="pain.001",
            end_to_end_id=key,
            amount_minor=100,
            currency="EUR",
            debtor_account="debtor",
            creditor_account="creditor",
            payload={"key": key},
            attestation_id=attestation.id,
            policy_version_id="v1",
        )
    )
    return attestation.id, instruction


def dispatch(session: Session, received: InstructionRecord) -> object:
    """Authorize and enqueue, in one transaction: if one is done, the other is done too."""
    instructions = InstructionRepository(session)
    found = instructions.get(received.id)
    assert found is not None
    if found.state is InstructionState.RECEIVED:
        authorized = instructions.authorize(found.id, version=found.version)
        instructions.start_execution(found.id, version=authorized.version)
        AttemptLogRepository(session).open_execution(found.id, worker_id="client")
    item = NewOutboxItem(
        instruction_id=found.id,
        participant_id=found.participant_id,
        idempotency_key=found.idempotency_key,
        rail_type="SCT",
        payload={"key": found.idempotency_key},
        max_attempts=MAX_ATTEMPTS,
    )
    return OutboxRepository(session).enqueue(item).outbox_id


@dataclass
class Workers:
    """Worker processes. A worker that ends while items are pending is started again."""

    site: Site
    lease: timedelta = LEASE
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    restarts: int = 0

    def start(self, name: str) -> None:
        url = self.site.url("executor").render_as_string(hide_password=False)
        with (self.site.journal.path.parent / f"{name}.err").open("ab") as errors:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.worker", name),
                    *("--batch", "4", "--lease", str(self.lease.total_seconds())),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}",
                    "DATABASE_URL": url,
                    "JOURNAL": str(self.site.journal.path),
                    "POOLER": "1" if self.site.pooler else "",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        self.processes[name] = process

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def tend(self) -> None:
        for name, process in tuple(self.processes.items()):
            if process.poll() is not None:
                assert process.stdin is not None
                process.stdin.close()
                self.restarts += process.returncode != 0
                self.start(name)

    def drain(self) -> None:
        """Wait until every item has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.site.pending():
            if time.monotonic() > deadline:
                raise Undone(f"{self.site.pending()} items are still pending")
            self.tend()
            time.sleep(0.1)

    def dismiss(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@dataclass(frozen=True)
class Figures:
    """A line of the table at the end of `make faults`."""

    scenario: str
    faults: str
    acknowledged: int
    lost: int
    doubled: int
    sent_again: int
    """Calls of a rail after the first for the same payment. The rail is at-least-once."""
    unknown: int
    """Items that ended FAILED with the outcome UNKNOWN."""
    restarts: int


@contextmanager
def traffic(
    at: Site, *, workers: int = 2, clients: int = 2, lease: timedelta = LEASE
) -> Iterator[Workers]:
    """Run clients and workers for the length of the block. Afterwards every item has ended."""
    crew = Workers(at, lease)
    senders = [Client(at, f"client-{number}") for number in range(clients)]
    try:
        for number in range(workers):
            crew.start(f"worker-{number}")
        for sender in senders:
            sender.start()
        yield crew
        for sender in senders:
            sender.finish()
        crew.drain()
    finally:
        crew.dismiss()


def figures(at: Site, crew: Workers, scenario: str, findings: list[Finding]) -> Figures:
    acknowledged = sum(1 for note in at.journal.notes() if note["what"] in ACTS)
    calls = Counter((note["instruction_id"], note["key"]) for note in at.journal.notes(RAIL))
    return Figures(
        scenario,
        ", ".join(f"{count} {name}" for name, count in at.faults.items()),
        acknowledged,
        sum(1 for one in findings if "lost" in one.rule or "neither" in one.rule),
        sum(1 for one in findings if "twice" in one.rule or "more than one" in one.rule),
        sum(calls.values()) - len(calls),
        at.unknown(),
        crew.restarts,
    )


ACTS = ("attested", "received", "authorized", "enqueued", "claimed", "recorded")
