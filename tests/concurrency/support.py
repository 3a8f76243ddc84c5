"""Start threads together, and return their errors as values."""

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
    """The first statement of a transaction takes the snapshot of REPEATABLE READ and
    SERIALIZABLE."""
    connection.execute("SELECT FROM orchestration.schema_revision")


def together(
    works: Sequence[Callable[[threading.Barrier], T]],
) -> list[T | psycopg.Error]:
    """Run each function in its own thread; they can wait for each other at the barrier. Return the
    results in order, with a database error in place of the result."""
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
    """Writers whose transactions overlap without a pause. `write(connection, writer, number)` does
    the work of one transaction. Each writer continues until its first error that is not a
    serialization failure."""

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
        """Write until an error ends it, and return the codes of the errors."""
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
                    # At this point every writer has the gate, so the change starts while all of
                    # them are active.
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
