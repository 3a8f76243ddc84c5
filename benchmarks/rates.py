"""Measures the rates of the outbox and the attestations, and those of pgmq on the same server.

usage: python -m benchmarks.rates [--items 20000] [--rounds 3]

Both sides take turns, so that other load on the machine affects both. The table shows medians; the
ratio is the figure to compare between machines. There is one worker with one connection, payloads
have about 200 bytes, and every item has an authorized instruction. (Receiving instructions is a
separate case; authorizing them is not timed.) pgmq reads and archives in the same batches of 500.
"""

import argparse
import hashlib
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
from pgmq import PGMQueue
from pgmq.install import install_pgmq_from_sql
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, text
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.records import (
    Completion,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
    NewPolicyVersion,
)
from orchestration.repo import (
    AttestationRepository,
    InstructionRepository,
    OutboxRepository,
    PolicyVersionRepository,
)
from orchestration.testing.embedded import EmbeddedServerError
from orchestration.vocabulary import CompletionState

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
ENQUEUE_BATCH = 1000
DRAIN_BATCH = 500
PARTICIPANTS = 500
SINGLE = 2000
ATTESTATION = "attestation, one a transaction"


def payload(number: int) -> dict[str, object]:
    return {
        "id": number,
        "participant": f"P{number % PARTICIPANTS:05d}",
        "kind": "payment.initiated",
        "amount": f"{number % 9973}.00",
        "ccy": "GBP",
        "memo": "x" * 110,
    }


@contextmanager
def server() -> Iterator[scratch.Server]:
    """Yield the server to measure. If there is none, end the program with the reason."""
    try:
        with scratch.server(SETTINGS) as at:
            yield at
    except (scratch.ScratchRefused, EmbeddedServerError) as error:
        raise SystemExit(str(error)) from error


def timed(work: Callable[[], int]) -> float:
    """Return the units per second."""
    began = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began)


class Ours:
    """The repositories, each on a Session of a different login."""

    def __init__(self, database: scratch.Database, items: int) -> None:
        self.items = items
        self.ingest = sessionmaker(create_engine(database.as_role("ingest")))
        self.executor = sessionmaker(create_engine(database.as_role("executor")))
        with Session(create_engine(database.as_role("control"))) as session:
            PolicyVersionRepository(session).rotate(
                NewPolicyVersion(
                    id="v1",
                    description="benchmark",
                    checksum=hashlib.sha256(b"v1").hexdigest(),
                    created_by="benchmark",
                ),
                grace=timedelta(0),
            )
            session.commit()
        with self.ingest() as session:
            self.attestation = AttestationRepository(session).append(
                NewAttestation(
                    caller_identity="benchmark",
                    idempotency_key="benchmark",
                    payload_hash=hashlib.sha256(b"benchmark").hexdigest(),
                    policy_version_id="v1",
                )
            )
            session.commit()
        self.database = database
        self.instructions: list[uuid.UUID] = []

    def receive(self) -> int:
        count = self.items + SINGLE
        with self.ingest() as session:
            instructions = InstructionRepository(session)
            for first in range(0, count, ENQUEUE_BATCH):
                received = instructions.receive_many(
                    [
                        NewInstruction(
                            participant_id=f"P{number % PARTICIPANTS:05d}",
                            idempotency_key=f"K{number}",
                            instruction_type="pain.001",
                            end_to_end_id=f"E{number}",
                            amount_minor=number + 1,
                            currency="GBP",
                            debtor_account="debtor",
                            creditor_account="creditor",
                            payload=payload(number),
                            attestation_id=self.attestation.id,
                            policy_version_id="v1",
                        )
                        for number in range(first, min(first + ENQUEUE_BATCH, count))
                    ]
                )
                session.commit()
                self.instructions += [one.id for one in received]
        return count

    def authorize(self) -> None:
        """Let the owner authorize all instructions at once. This is not timed."""
        with scratch.maintenance(self.database.url) as connection:
            connection.execute(
                text(
                    "UPDATE orchestration.instructions SET state = 'AUTHORIZED'"
                    " WHERE state = 'RECEIVED'"
                )
            )
            connection.execute(text("VACUUM ANALYZE orchestration.instructions"))

    def enqueue(self) -> int:
        with self.executor() as session:
            outbox = OutboxRepository(session)
            for first in range(0, self.items, ENQUEUE_BATCH):
                outbox.enqueue_many(
                    [
                        NewOutboxItem(
                            instruction_id=self.instructions[number],
                            participant_id=f"P{number % PARTICIPANTS:05d}",
                            idempotency_key=f"K{number}",
                            rail_type="SCT",
                            payload=payload(number),
                        )
                        for number in range(first, first + ENQUEUE_BATCH)
                    ]
                )
                session.commit()
        return self.items

    def drain(self) -> int:
        done = 0
        with self.executor() as session:
            outbox = OutboxRepository(session)
            while items := outbox.claim(
                "worker", batch_size=DRAIN_BATCH, lease=timedelta(minutes=1)
            ):
                session.commit()
                outbox.complete_many(
                    [(item, Completion(state=CompletionState.DISPATCHED)) for item in items]
                )
                session.commit()
                done += len(items)
        return done

    def enqueue_singly(self) -> int:
        with self.executor() as session:
            outbox = OutboxRepository(session)
            for number in range(self.items, self.items + SINGLE):
                outbox.enqueue(
                    NewOutboxItem(
                        instruction_id=self.instructions[number],
                        participant_id=f"P{number % PARTICIPANTS:05d}",
                        idempotency_key=f"K{number}",
                        rail_type="SCT",
                        payload=payload(number),
                    )
                )
                session.commit()
        return SINGLE

    def attest_singly(self) -> int:
        with self.ingest() as session:
            for number in range(SINGLE):
                self.attest(session, number)
                session.commit()
        return SINGLE

    def attest(self, session: Session, number: int) -> None:
        AttestationRepository(session).append(
            NewAttestation(
                caller_identity=f"P{number % PARTICIPANTS:05d}",
                idempotency_key=uuid.uuid4().hex,
                payload_hash=hashlib.sha256(str(number).encode()).hexdigest(),
                policy_version_id="v1",
            )
        )

    def close(self) -> None:
        for factory in (self.ingest, self.executor):
            factory.kw["bind"].dispose()


class Pgmq:
    """pgmq's Python client: send_batch, read, archive_batch."""

    def __init__(self, url: URL, items: int) -> None:
        self.items = items
        self.dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        install_pgmq_from_sql(dsn=self.dsn)
        self.queue = PGMQueue(conn_string=self.dsn, init_extension=False, pool_size=1)
        self.queue.create_queue("q")

    def enqueue(self) -> int:
        with psycopg.connect(self.dsn) as connection:
            for first in range(0, self.items, ENQUEUE_BATCH):
                batch = [payload(number) for number in range(first, first + ENQUEUE_BATCH)]
                self.queue.send_batch("q", batch, conn=connection)
                connection.commit()
        return self.items

    def drain(self) -> int:
        done = 0
        while messages := self.queue.read("q", vt=60, qty=DRAIN_BATCH):
            assert isinstance(messages, list)
            self.queue.archive_batch("q", [message.msg_id for message in messages])
            done += len(messages)
        return done

    def enqueue_singly(self) -> int:
        for number in range(SINGLE):
            self.queue.send("q", payload(number))
        return SINGLE


def work_of(side: Ours | Pgmq) -> dict[str, Callable[[], int]]:
    """Return the cases of a side, in the order in which they run."""
    return {
        "bulk enqueue, 1000 a transaction": side.enqueue,
        "drain, batches of 500": side.drain,
        "enqueue, one a transaction": side.enqueue_singly,
    }


@contextmanager
def pgmq_database(at: scratch.Server, items: int) -> Iterator[Pgmq]:
    name = scratch.PREFIX + uuid.uuid4().hex[:12]
    peer = Pgmq(scratch.create_database(at, name), items)
    try:
        yield peer
    finally:
        peer.queue.close()
        scratch.drop_database(at, name)


def measure(at: scratch.Server, items: int) -> dict[str, tuple[float, float | None]]:
    """Run one round, each side on a new database. Return (ours, pgmq) by case."""
    with scratch.database(at) as database, pgmq_database(at, items) as peer:
        ours = Ours(database, items)
        found: dict[str, tuple[float, float | None]] = {
            "instructions received, 1000 a transaction": (timed(ours.receive), None)
        }
        ours.authorize()
        theirs = work_of(peer)
        for case, work in work_of(ours).items():
            found[case] = (timed(work), timed(theirs[case]))
        found[ATTESTATION] = (timed(ours.attest_singly), None)
        ours.close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with server() as at:
        rounds = [measure(at, options.items) for _ in range(options.rounds)]
        table = Table(title=f"PostgreSQL {at.version} ({at.kind}), medians of {options.rounds}")
        for heading in ("case", "orchestration /s", "pgmq /s", "ratio"):
            table.add_column(heading, justify="left" if heading == "case" else "right")
        for case in rounds[0]:
            ours = statistics.median(found[case][0] for found in rounds)
            theirs = [peer for found in rounds if (peer := found[case][1]) is not None]
            if theirs:
                peer = statistics.median(theirs)
                table.add_row(case, f"{ours:,.0f}", f"{peer:,.0f}", f"{ours / peer:.2f}")
            else:
                table.add_row(case, f"{ours:,.0f}", "", "")
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
