"""Workers are killed, or stopped until their lease has expired, while they send payments."""

import signal
import time

import pytest

from tests.faults.conftest import Run, for_seconds
from tests.faults.site import LEASE, PATIENCE_SECONDS, Site, Undone, Workers
from tests.support import Connect, scalar


@pytest.mark.invariant("INV-OUT-005", "INV-OUT-009")
def test_worker_killed(own_site: Site, run: Run) -> None:
    with run(own_site, workers=3) as crew:
        for number in for_seconds(20, every=0.7):
            crew.tend()
            crew.signal(f"worker-{number % 3}", signal.SIGKILL)
            own_site.faults["kills of a worker"] += 1


HOLDS_A_LEASE = """
    SELECT EXISTS (
      SELECT FROM orchestration.payment_outbox_pending
      WHERE claimed_by = %s AND lease_expires_at > clock_timestamp()
    )
"""


def stop_under_a_lease(crew: Workers, observer: Connect, name: str) -> None:
    """Stop a worker at a moment when it has a lease, because an idle worker loses nothing."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        crew.tend()
        crew.signal(name, signal.SIGSTOP)
        if scalar(observer, HOLDS_A_LEASE, (name,)):
            return
        crew.signal(name, signal.SIGCONT)
        time.sleep(0.005)
    raise Undone(f"{name} has held no lease for {PATIENCE_SECONDS} s")


@pytest.mark.invariant("INV-OUT-002")
def test_worker_stopped_past_its_lease(own_site: Site, run: Run) -> None:
    with run(own_site, workers=3) as crew, own_site.superuser() as observer:
        for number in for_seconds(20, every=0.5):
            name = f"worker-{number % 3}"
            stop_under_a_lease(crew, observer, name)
            time.sleep(2 * LEASE.total_seconds())
            crew.signal(name, signal.SIGCONT)
            own_site.faults["stops of a worker"] += 1
    assert any(own_site.journal.notes("lease-lost")), "no worker came back after its lease"
