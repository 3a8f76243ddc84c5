"""A server that a test can crash and start again on the same data."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url
from tools import scratch

from orchestration.testing import _supervisor, embedded


class Unattended(_supervisor.Lifeline):
    """Keeps a server that this process runs itself alive."""

    def __init__(self) -> None:
        """Leave the signal handlers of pytest unchanged."""

    def cut(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False


@dataclass
class Restartable:
    directory: Path
    """Create a folder that the server's user can read."""
    cluster: _supervisor.Cluster
    password: str
    settings: dict[str, str]
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the server, with these variables added to its environment."""
        with pytest.MonkeyPatch.context() as patched:
            for name, value in (environment or {}).items():
                patched.setenv(name, value)
            self.process, self.port = self.cluster.start(self.settings, port=self.port)

    def crash(self) -> None:
        """Kill all processes of the server at once, so that everything that is only in memory is
        lost."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    @property
    def url(self) -> URL:
        return make_url(
            f"postgresql+psycopg://postgres:{self.password}@{_supervisor.HOST}:{self.port}/postgres"
        )

    @property
    def server(self) -> scratch.Server:
        return scratch.describe(self.url, "restartable")


@contextmanager
def restartable(settings: dict[str, str]) -> Iterator[Restartable]:
    """A server to start, from the binaries that `scratch.own_server` uses. It is removed at the
    end."""
    with without_data(secrets.token_hex(16), settings) as made:
        major = embedded._major_version(made.cluster.binaries)
        locale = _supervisor.BUILTIN_LOCALE if major >= 17 else _supervisor.LIBRARY_LOCALE
        made.cluster.initialise(made.password, "--no-sync", locale=locale)
        yield made


@contextmanager
def standby(primary: Restartable) -> Iterator[Restartable]:
    """A streaming standby of this running server, to start."""
    with without_data(primary.password, primary.settings) as made:
        made.cluster.data.mkdir(mode=0o700)
        _supervisor.give_away(made.cluster.data)
        source = primary.url.set(drivername="postgresql").render_as_string(hide_password=False)
        backup = made.cluster._spawn(
            "pg_basebackup",
            *(f"--dbname={source}", f"--pgdata={made.cluster.data}"),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
        made.cluster._attend(backup, lambda process: process.poll() is not None)
        assert backup.returncode == 0, made.cluster._log_end()
        yield made


@contextmanager
def without_data(password: str, settings: dict[str, str]) -> Iterator[Restartable]:
    named = os.environ.get("POSTGRES_BIN")
    binaries = embedded._given_binaries(Path(named)) if named else embedded._package_binaries()
    directory, lock = _supervisor.make_directory(Path(tempfile.gettempdir()).resolve())
    try:
        if os.geteuid() == 0:
            directory.chmod(0o711)
        cluster = _supervisor.Cluster(
            binaries, directory / "data", directory / "log", Unattended(), lock
        )
        made = Restartable(directory, cluster, password, settings)
        try:
            yield made
        finally:
            if made.process is not None:
                _supervisor.stop(made.process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)
