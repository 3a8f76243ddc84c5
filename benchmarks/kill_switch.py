"""Measures how long engaging a kill switch takes until its COMMIT, on an idle server and against
writers whose transactions overlap without a pause.

usage: python -m benchmarks.kill_switch [--writers 8] [--times 20]

benchmarks.prices measures the cost of the check for a gated write.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.rates import Ours, server
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.errors import KillSwitchEngaged
from orchestration.repo import KillSwitchRepository


@contextmanager
def writers(database: scratch.Database, count: int) -> Iterator[None]:
    """Attest without a pause in transactions of 10 ms, until the end."""
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


def latencies(database: scratch.Database, times: int) -> list[float]:
    """Return the milliseconds from the call to its COMMIT."""
    found = []
    engine = create_engine(database.as_role("control"))
    sessions: Callable[[], Session] = sessionmaker(engine)
    for _ in range(times):
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
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    console = Console(width=100)
    with server() as at, scratch.database(at) as database, ExitStack() as load:
        for state in ("idle", f"{options.writers} writers"):
            if state != "idle":
                load.enter_context(writers(database, options.writers))
            found = latencies(database, options.times)
            console.print(
                f"engaging, {state}: median {statistics.median(found):.1f} ms,"
                f" longest {max(found):.1f} ms"
            )


if __name__ == "__main__":
    main()
