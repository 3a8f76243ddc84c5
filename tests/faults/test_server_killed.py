"""The server's processes are killed while payments pass."""

import os
import signal

import psycopg
import pytest

from tests.faults.conftest import Run, for_seconds
from tests.faults.site import Site
from tests.operations.restartable import Restartable

BACKENDS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND datname = current_database()"
    " AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
)


def kill(server: Restartable) -> None:
    """SIGKILL of the postmaster. Its children end when they notice; until then none can start."""
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    for _ in for_seconds(30, every=0.1):
        try:
            server.start()
        except Exception as error:
            reason = error
        else:
            return
    raise reason


@pytest.mark.invariant("INV-OUT-009")
def test_server_killed(own_site: Site, run: Run) -> None:
    with run(own_site):
        for _ in for_seconds(20, every=2):
            kill(own_site.server)
            own_site.faults["kills of the server"] += 1


@pytest.mark.invariant("INV-OUT-009")
def test_backend_killed(own_site: Site, run: Run) -> None:
    with run(own_site):
        for _ in for_seconds(20, every=1):
            try:
                with own_site.superuser() as connection:
                    row = connection.execute(BACKENDS).fetchone()
            except psycopg.OperationalError:
                continue  # the server recovers from the last one
            if row is not None:
                os.kill(int(str(row[0])), signal.SIGKILL)
                own_site.faults["kills of a backend"] += 1
