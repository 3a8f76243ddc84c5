"""Runs tests through PgBouncer in transaction mode, for `make pooler`.

usage: python -m tools.pooler [pytest arguments]

Runs tests/repo, or the tests that the arguments name, on the same server as `make test`, but the
engines of the tests connect through PgBouncer. `pgbouncer` must be installed: Debian has a package
of that name.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from orchestration.testing._supervisor import (
    HOST,
    UNPRIVILEGED,
    choose_port,
    end_with_parent,
    environment,
    give_away,
    make_directory,
    remove,
)
from tools.scratch import ROOT, ScratchRefused

VARIABLE = "ORCHESTRATION_POOLER"
"""If this variable is set, the engines of the tests connect through PgBouncer."""

PATIENCE_SECONDS = 10.0
CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = plain
auth_file = {users}
pool_mode = transaction
default_pool_size = 30
max_client_conn = 500
"""


@contextmanager
def pgbouncer(logins: Iterable[URL]) -> Iterator[URL]:
    """Run PgBouncer during the block for these logins of one server. Yield the URL of the first
    login with PgBouncer's host and port.

    If the main thread calls this, PgBouncer ends with this process, whatever ends it (on Linux).
    Raises ScratchRefused if PgBouncer is not installed or does not start.
    """
    program = shutil.which("pgbouncer")
    if program is None:
        raise ScratchRefused("pgbouncer is not installed: install Debian's package `pgbouncer`")
    known = list(logins)
    # If this process is killed, the next embedded server removes the folder.
    folder, lock = make_directory(Path(tempfile.gettempdir()))
    try:
        folder.chmod(0o711)
        users, configuration = folder / "users", folder / "pgbouncer.ini"
        port = choose_port(0)
        users.write_text("".join(f'"{url.username}" "{url.password}"\n' for url in known))
        configuration.write_text(
            CONFIGURATION.format(
                host=known[0].host,
                port=known[0].port or 5432,
                listen=HOST,
                listen_port=port,
                users=users,
            )
        )
        for path in (users, configuration):
            path.chmod(0o600)
            give_away(path)
        account = UNPRIVILEGED if os.geteuid() == 0 else None
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "--quiet", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                user=account,
                group=account,
                extra_groups=None if account is None else [],
                pass_fds=(lock,),
                # SIGINT would wait for the clients.
                preexec_fn=end_with_parent(signal.SIGTERM),
            )
        try:
            await_listening(process, port, folder / "log")
            yield known[0].set(host=HOST, port=port)
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
    finally:
        remove(folder)
        os.close(lock)


def await_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.01)
    words = " ".join(log.read_text(errors="replace").split())
    raise ScratchRefused(f"pgbouncer did not start: {words[-500:]}")


def main() -> None:
    arguments = sys.argv[1:] or ["-q", "-n", "2", "tests/repo"]
    os.chdir(ROOT)
    os.environ[VARIABLE] = "pgbouncer"
    # Replace this process, so that an interrupt reaches pytest and its exit code is returned.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])


if __name__ == "__main__":
    main()
