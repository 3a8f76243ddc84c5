"""Workers are killed, and stopped past their lease, while they send payments."""

import signal
import time

import pytest

from tests.faults.conftest import Run, for_seconds
from tests.faults.site import LEASE, Site


@pytest.mark.invariant("INV-OUT-005", "INV-OUT-009")
def test_worker_killed(own_site: Site, run: Run) -> None:
    with run(own_site, workers=3) as crew:
        for number in for_seconds(20, every=0.7):
            crew.tend()
            crew.signal(f"worker-{number % 3}", signal.SIGKILL)
            own_site.faults["kills of a worker"] += 1


@pytest.mark.invariant("INV-OUT-002")
def test_worker_stopped_past_its_lease(own_site: Site, run: Run) -> None:
    with run(own_site, workers=3) as crew:
        for number in for_seconds(20, every=0.5):
            name = f"worker-{number % 3}"
            crew.signal(name, signal.SIGSTOP)
            time.sleep(2 * LEASE.total_seconds())
            crew.signal(name, signal.SIGCONT)
            own_site.faults["stops of a worker"] += 1
    assert any(own_site.journal.notes("lease-lost")), "no worker came back after its lease"
