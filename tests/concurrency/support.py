"""Threads that start together, and outcomes as values."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg

from tests.support import Connect

T = TypeVar("T")

PATIENCE_SECONDS = 60.0


def begin(connection: Connect, isolation: str) -> None:
    connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")  # type: ignore[arg-type]


def take_snapshot(connection: Connect) -> None:
    """The first statement of a transaction fixes what REPEATABLE READ and SERIALIZABLE see."""
    connection.execute("SELECT FROM orchestration.schema_revision")


def together(
    works: Sequence[Callable[[threading.Barrier], T]],
) -> list[T | psycopg.Error]:
    """Runs each in a thread of its own; each may meet the others at the barrier. The results in
    order, a refusal of the server as its error."""
    barrier = threading.Barrier(len(works), timeout=PATIENCE_SECONDS)

    def run(work: Callable[[threading.Barrier], T]) -> T | psycopg.Error:
        try:
            return work(barrier)
        except psycopg.Error as error:
            return error
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result() for future in [threads.submit(run, work) for work in works]]
