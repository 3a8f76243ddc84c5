"""Runs the worker processes of the demo: starts them, reads their events and stops them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import URL

PATIENCE_SECONDS = 60.0


class WorkerFailed(RuntimeError):
    """A worker failed, or has printed nothing for too long."""


@dataclass(frozen=True)
class Event:
    """An event that a worker has printed, `seconds` after the crew was created."""

    worker: str
    name: str
    facts: dict[str, Any]
    seconds: float


@dataclass
class Crew:
    url: URL
    events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    _began: float = field(default_factory=time.monotonic)
    _processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _listeners: list[threading.Thread] = field(default_factory=list)

    def start(self, worker: str, *options: str) -> None:
        """Start a worker, which waits for `begin`."""
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.worker", worker, *options],
            env={**os.environ, "DATABASE_URL": self.url.render_as_string(hide_password=False)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C must reach only the parent, which then stops its workers.
            start_new_session=True,
        )
        self._processes[worker] = process
        listener = threading.Thread(target=self._listen, args=(worker, process), daemon=True)
        listener.start()
        self._listeners.append(listener)

    def begin(self, worker: str) -> None:
        stdin = self._processes[worker].stdin
        assert stdin is not None
        try:
            stdin.write("\n")
            stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{worker} ended before it began") from None

    def kill(self, worker: str) -> None:
        """Send SIGKILL: the worker cannot clean up anything."""
        self._processes[worker].kill()
        self._processes[worker].wait()

    def listen(self) -> Iterator[Event]:
        """Yield the events of the workers as they arrive. `ended` contains the exit code."""
        while True:
            try:
                yield self.events.get(timeout=PATIENCE_SECONDS)
            except Empty:
                raise WorkerFailed(f"no event for {PATIENCE_SECONDS:.0f} s") from None

    def _listen(self, worker: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # the worker was killed while it printed
            facts = json.loads(line)
            self._tell(worker, facts.pop("event"), facts)
        self._tell(worker, "ended", {"exit_code": process.wait()})

    def _tell(self, worker: str, name: str, facts: dict[str, Any]) -> None:
        self.events.put(Event(worker, name, facts, time.monotonic() - self._began))

    def dismiss(self) -> None:
        """Kill the workers that are still running."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for listener in self._listeners:
            listener.join()
        for process in self._processes.values():
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


@contextmanager
def crew(url: URL) -> Generator[Crew]:
    """Yield a crew that works at this URL. Stop all its processes after the block."""
    made = Crew(url)
    try:
        yield made
    finally:
        made.dismiss()
