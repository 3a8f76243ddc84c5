"""The server's clock steps forward and back while payments pass."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from tests.faults.conftest import SETTINGS, Run, faketime_library, for_seconds
from tests.faults.site import Site, site
from tests.operations.restartable import restartable
from tests.operations.runbook import blocks, filled

# Forward past every lease, and back. A step back only makes items and leases wait longer.
STEPS = ("+30s", "+0s", "-10s", "+0s", "+5s", "+0s")


@pytest.fixture
def clock(folder: Path) -> Path:
    made = folder / "clock"
    made.write_text("+0s\n")
    made.chmod(0o644)
    return made


@pytest.fixture
def site_with_clock(folder: Path, clock: Path) -> Iterator[Site]:
    library = faketime_library()
    assert library is not None
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # Timeouts use the monotonic clock, which no step changes.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with restartable(SETTINGS) as server:
        server.start(environment)
        with site(server, folder) as at:
            yield at


@pytest.mark.invariant("INV-OUT-002", "INV-ATT-005")
def test_clock_steps(site_with_clock: Site, run: Run, clock: Path) -> None:
    with run(site_with_clock):
        for _, step in zip(for_seconds(20, every=2.5), cycle(STEPS), strict=False):
            clock.write_text(f"{step}\n")
            site_with_clock.faults["steps of the clock"] += 1
        clock.write_text("+0s\n")


def test_the_runbook_shows_that_the_clock_went_back(site_with_clock: Site, clock: Path) -> None:
    compare, waiting = blocks("The clock has jumped")
    with site_with_clock.superuser() as connection:
        clock.write_text("+2d\n")
        connection.execute(
            "SELECT FROM orchestration.engage_kill_switch(p_scope => 'INGEST',"
            " p_reason => 'test', p_engaged_by => 'test')"
        )
        clock.write_text("+0s\n")
        [(_, _, seconds_ahead)] = connection.execute(filled(compare)).fetchall()
        assert 2 * 86400 - 60 < seconds_ahead <= 2 * 86400
        assert connection.execute(filled(waiting)).fetchall() == []
