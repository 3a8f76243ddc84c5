"""What a kill switch costs and how quickly it engages.

usage: python -m benchmarks.kill_switch [--writers 8] [--rounds 3]

The price is a ratio: the same gated writes in a database whose switches have been taken out, by
turns. The latency is that of engaging, to its COMMIT, on an idle server and against writers whose
transactions overlap without a pause.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.rates import SETTINGS, Ours, timed
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.errors import KillSwitchEngaged
from orchestration.repo import KillSwitchRepository

ITEMS = 5_000

# The triggers, and the gate that the functions take before their other locks.
WITHOUT = """
SET ROLE symphony_owner;
DROP TRIGGER kill_switch ON orchestration.ingress_attestations;
DROP TRIGGER kill_switch ON orchestration.payment_outbox_items;
DROP TRIGGER kill_switch ON orchestration.payment_outbox_attempts;
CREATE OR REPLACE FUNCTION orchestration.share_kill_switch_gate() RETURNS void
LANGUAGE sql RETURN NULL;
CREATE OR REPLACE FUNCTION orchestration.refuse_if_killed(
  p_scope text, p_participant_ids text[] DEFAULT NULL, p_rail_types text[] DEFAULT NULL
) RETURNS void
LANGUAGE sql RETURN NULL;
"""


def work_of(ours: Ours) -> dict[str, Callable[[], int]]:
    return {
        "bulk enqueue, 1000 a transaction": ours.enqueue,
        "drain, batches of 500": ours.drain,
        "enqueue, one a transaction": ours.enqueue_singly,
        "attestation, one a transaction": ours.attest_singly,
    }


def prices(at: scratch.Server, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(with, without) a second, by case and round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with scratch.database(at) as gated, scratch.database(at) as ungated:
            with scratch.maintenance(ungated.url) as connection:
                connection.exec_driver_sql(WITHOUT)
            sides = [Ours(gated, ITEMS), Ours(ungated, ITEMS)]
            for side in sides:
                side.receive()
                side.authorize()
            first, second = (work_of(side) for side in sides)
            for case in first:
                found.setdefault(case, []).append((timed(first[case]), timed(second[case])))
            for side in sides:
                side.close()
    return found


@contextmanager
def writers(database: scratch.Database, count: int) -> Iterator[None]:
    """Attest without a pause, each in transactions of 10 ms, until the end."""
    over = threading.Event()
    ours = Ours(database, 0)

    def write() -> None:
        number = 0
        while not over.is_set():
            with ours.ingest() as session:
                try:
                    ours.attest(session, number)
                    session.execute(text("SELECT pg_sleep(0.01)"))
                    session.commit()
                except KillSwitchEngaged:
                    session.rollback()
            number += 1

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        ours.close()


def latencies(database: scratch.Database, rounds: int) -> list[float]:
    """Milliseconds from the call to its COMMIT."""
    found = []
    engine = create_engine(database.as_role("control"))
    sessions: Callable[[], Session] = sessionmaker(engine)
    for _ in range(rounds):
        with sessions() as session:
            switches = KillSwitchRepository(session)
            began = time.perf_counter()
            switches.engage(scope="GLOBAL", reason="benchmark", engaged_by="benchmark")
            session.commit()
            found.append((time.perf_counter() - began) * 1000)
            switches.release(scope="GLOBAL", reason="benchmark", released_by="benchmark")
            session.commit()
        time.sleep(0.1)
    engine.dispose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=100)
    with scratch.server(SETTINGS) as at:
        table = Table(title=f"PostgreSQL {at.version} ({at.kind}), medians of {options.rounds}")
        for heading in ("case", "with /s", "without /s", "price"):
            table.add_column(heading, justify="left" if heading == "case" else "right")
        for case, pairs in prices(at, options.rounds).items():
            gated, ungated = (statistics.median(side) for side in zip(*pairs, strict=True))
            price = 1 - statistics.median(a / b for a, b in pairs)
            table.add_row(case, f"{gated:,.0f}", f"{ungated:,.0f}", f"{price:.1%}")
        console.print(table)
        with scratch.database(at) as database, ExitStack() as load:
            for state in ("idle", f"{options.writers} writers"):
                if state != "idle":
                    load.enter_context(writers(database, options.writers))
                found = latencies(database, 20)
                console.print(
                    f"engaging, {state}: median {statistics.median(found):.1f} ms,"
                    f" longest {max(found):.1f} ms"
                )


if __name__ == "__main__":
    main()
