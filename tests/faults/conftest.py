"""Fixtures that the scenarios share: a server per scenario, required programs, and figures."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.site import Figures, Site, Workers, figures, site, traffic
from tests.operations.restartable import restartable

# synchronous_commit stays on: an acknowledged act must survive the end of the server.
SETTINGS = {"max_connections": "50", "log_min_messages": "fatal"}

_figures = pytest.StashKey[list[Figures]]()


def faketime_library() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_figures] = []
    if os.geteuid() != 0:
        raise pytest.UsageError(
            "The fault scenarios need root, who may mount the small disk that fills up"
        )
    missing = [] if shutil.which("pgbouncer") else ["pgbouncer"]
    if faketime_library() is None:
        missing.append("faketime")
    if missing:
        raise pytest.UsageError(
            f"The fault scenarios need Debian's {' and '.join(missing)}:"
            f" run `apt-get install {' '.join(missing)}`"
        )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user can reach."""
    made = Path(tempfile.mkdtemp(prefix="orchestration-faults-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def own_site(folder: Path) -> Iterator[Site]:
    """A migrated database on a server that only this scenario uses."""
    with restartable(SETTINGS) as server:
        server.start()
        with site(server, folder) as at:
            yield at


Run = Callable[..., AbstractContextManager[Workers]]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """The traffic of a scenario. At the end the judge must find nothing."""
    scenario = request.node.name.removeprefix("test_").replace("_", " ")

    @contextmanager
    def run_one(at: Site, **options: object) -> Iterator[Workers]:
        with ExitStack() as running:
            crew = running.enter_context(traffic(at, **options))  # type: ignore[arg-type]
            yield crew
        findings = at.judge()
        made = figures(at, crew, scenario, findings)
        request.config.stash[_figures].append(made)
        assert findings == []
        assert at.faults, "the scenario injected nothing"
        assert made.acknowledged > 100, "the traffic stood still"

    return run_one


def for_seconds(seconds: float, *, every: float) -> Iterator[int]:
    """Yield numbers from 0, one every `every` seconds, for the length of a scenario."""
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds:
        time.sleep(every)
        yield number
        number += 1


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[_figures]
    if not rows:
        return
    heading = ("scenario", "faults injected", "acts acknowledged", "lost", "doubled")
    heading += ("sent again", "outcome unknown", "workers restarted")
    table = [heading] + [
        (
            *(row.scenario, row.faults, str(row.acknowledged), str(row.lost)),
            *(str(row.doubled), str(row.sent_again), str(row.unknown), str(row.restarts)),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(heading))]
    terminalreporter.section("faults")
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
