"""Threads that start together, and outcomes as values."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import pytest

from tests.support import Connect, Refusal

T = TypeVar("T")

PATIENCE_SECONDS = 60.0


def begin(connection: Connect, isolation: str) -> None:
    connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")


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


def refused(act: Callable[[], object]) -> Refusal:
    with pytest.raises(psycopg.Error) as raised:
        act()
    return Refusal.of(raised.value)


def errors_of(results: Sequence[object]) -> list[str | None]:
    return [one.sqlstate for one in results if isinstance(one, psycopg.Error)]


class OverlappingWriters:
    """Writers whose transactions overlap without a pause, each until the first refusal that is not
    a serialization failure: `write(connection, writer, number)` is a transaction's work."""

    def __init__(
        self,
        connections: list[Connect],
        isolation: str,
        write: Callable[[Connect, int, int], object],
    ) -> None:
        self._connections = connections
        self._isolation = isolation
        self._write = write
        self._under_way = threading.Barrier(len(connections) + 1, timeout=PATIENCE_SECONDS)
        self._give_up = threading.Event()

    @contextmanager
    def at_work(self, threads: ThreadPoolExecutor) -> Iterator[list[Future[set[str]]]]:
        try:
            futures = [
                threads.submit(self._keep_writing, one, writer)
                for writer, one in enumerate(self._connections)
            ]
            self._under_way.wait()
            yield futures
        finally:
            self._give_up.set()

    def _keep_writing(self, connection: Connect, writer: int) -> set[str]:
        """Writes until refused; the codes of the refusals."""
        refusals: set[str] = set()
        number = committed = 0
        waited = False
        while not self._give_up.is_set():
            try:
                begin(connection, self._isolation)
                self._write(connection, writer, number)
                connection.execute("SELECT pg_sleep(0.002)")
                number += 1
                if committed and not waited:
                    # All hold the gate now: the change begins against every one of them.
                    self._under_way.wait()
                    waited = True
                connection.execute("COMMIT")
                committed += 1
            except psycopg.Error as error:
                connection.execute("ROLLBACK")
                refusals.add(str(error.sqlstate))
                if error.sqlstate != "40001":
                    break
        return refusals
