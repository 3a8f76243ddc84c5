"""PgBouncer is killed and started again while payments pass through it."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from orchestration.testing import _supervisor
from tests.faults.conftest import Run, for_seconds
from tests.faults.proxy import HOST
from tests.faults.site import Site
from tests.support import connect

CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = {host}
listen_port = {listen_port}
unix_socket_dir =
auth_type = plain
auth_file = {users}
pool_mode = transaction
"""


class PgBouncer:
    def __init__(self, folder: Path, at: Site) -> None:
        self.port = _supervisor.choose_port(0)
        self._configuration = folder / "pgbouncer.ini"
        self._log = folder / "pgbouncer.log"
        users = folder / "users"
        urls = at.database.logins.values()
        users.write_text("".join(f'"{url.username}" "{url.password}"\n' for url in urls))
        self._configuration.write_text(
            CONFIGURATION.format(host=HOST, port=at.server.port, listen_port=self.port, users=users)
        )
        for path in (users, self._configuration):
            _supervisor.give_away(path)
        self.start()

    def start(self) -> None:
        program = shutil.which("pgbouncer")
        assert program is not None
        account = _supervisor.UNPRIVILEGED if os.geteuid() == 0 else None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--quiet", str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=account,
                group=account,
                extra_groups=None if account is None else [],
                preexec_fn=_supervisor.end_with_parent(),
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def await_answer(at: Site) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            connect(at.url("executor")).close()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@pytest.mark.invariant("INV-OUT-009")
def test_pgbouncer_killed(own_site: Site, run: Run, folder: Path) -> None:
    pooler = PgBouncer(folder, own_site)
    try:
        own_site.through, own_site.pooler = (HOST, pooler.port), True
        await_answer(own_site)
        with run(own_site):
            for _ in for_seconds(20, every=1.5):
                pooler.kill()
                own_site.faults["kills of PgBouncer"] += 1
                pooler.start()
    finally:
        pooler.kill()
