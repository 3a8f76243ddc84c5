"""Runs one PostgreSQL server on behalf of another process, the caller.

`orchestration.testing.embedded` starts this file as a script in a session of its own, so that
Ctrl-C in the caller's terminal does not reach it. The script imports only the standard library, and
not the package around it, because it must be ready within a few milliseconds.

The protocol: the only argument is the kind of server, `throw-away` or `detached`. The caller writes
the order to stdin: one line of JSON with the fields of `ThrowAway` or `Detached`. The script
answers on stdout with one line of JSON that contains either `port` and `data`, or `error`. The
caller then keeps its end of stdin open. Only the caller has that end, so stdin closes when the
caller ends, for whatever reason.
"""

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

UNPRIVILEGED = 65534
"""The user and group that run PostgreSQL if this process is root: PostgreSQL refuses to be root."""

HOST = "127.0.0.1"
START_SECONDS = 60.0
START_ATTEMPTS = 5
POLL_SECONDS = 0.005
DIRECTORY_PREFIX = "orchestration-server-"
LOG_LINES = 15

# The built-in locale is the same on every platform, whatever its C library offers.
BUILTIN_LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
# PostgreSQL before 17 has only the locales of the C library.
LIBRARY_LOCALE = ("--locale=C", "--lc-ctype=C.UTF-8")

_PR_SET_PDEATHSIG = 1

Process: TypeAlias = "subprocess.Popen[bytes]"


class ServerFailed(Exception):
    """initdb or the server failed. The message ends with the last lines of the log."""


class Abandoned(Exception):
    """The caller ended, or withdrew its order, before the server was ready."""


@dataclass(frozen=True)
class ThrowAway:
    """The order for a server that stops when the caller ends; its directory is then removed.
    `version` is the major version of the binaries."""

    binaries: str
    version: int
    temporary: str
    password: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Detached:
    """The order for a server that outlives the caller. If there is a password, the data directory
    is created first. If the port is taken, the server uses a free one."""

    binaries: str
    data: str
    log: str
    port: int
    password: str | None


class Lifeline:
    """Reports whether the caller still needs the server."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._dismissed = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._dismiss)

    def _dismiss(self, _number: int, _frame: object) -> None:
        self._dismissed = True

    def cut(self, seconds: float) -> bool:
        """Wait up to `seconds`. Return True if the caller has ended, or if a signal asks this
        process to stop."""
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        # A forked child of the caller can keep the pipe open after the caller has ended. In that
        # case our parent process changes.
        return bool(readable) or self._dismissed or os.getppid() != self._parent


@dataclass(frozen=True)
class Cluster:
    """A data directory, with methods that initialise it and start a server on it.

    For a server that must not outlive this process, `lock` is the descriptor of a locked directory.
    Otherwise it is None.
    """

    binaries: Path
    data: Path
    log: Path
    lifeline: Lifeline
    lock: int | None

    def initialise(
        self, password: str, *options: str, locale: Sequence[str] = BUILTIN_LOCALE
    ) -> None:
        """Create the data directory. Its superuser is `postgres` with this password."""
        self.data.mkdir(mode=0o700)
        give_away(self.data)
        descriptor, password_file = tempfile.mkstemp(prefix="password-", dir=self.data.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(password)
            give_away(Path(password_file))
            initdb = self._spawn(
                "initdb",
                f"--pgdata={self.data}",
                "--username=postgres",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *locale,
                *options,
            )
            self._attend(initdb, lambda process: process.poll() is not None)
        finally:
            os.unlink(password_file)
        if initdb.returncode:
            raise ServerFailed(f"initdb failed; the end of its log:\n{self._log_end()}")

    def start(self, settings: dict[str, str], *, port: int = 0) -> tuple[Process, int]:
        """Start the server, on `port` if it is free. Return when it accepts connections."""
        # The last value of a setting counts: the caller can replace the first one, not the last.
        given = {"unix_socket_directories": "", **settings, "listen_addresses": HOST}
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        for _ in range(START_ATTEMPTS):
            chosen = choose_port(port)
            server = self._spawn("postgres", "-D", str(self.data), *options, "-p", str(chosen))
            self._attend(server, self._settled)
            if server.poll() is None:
                return server, chosen
            # Another process may have taken the port in the meantime. Any other cause fails again
            # immediately, so the causes need not be distinguished by the text of the log.
        raise ServerFailed(f"PostgreSQL did not start; the end of its log:\n{self._log_end()}")

    def _settled(self, server: Process) -> bool:
        """Whether the server has ended, or its pid file says that it is ready."""
        if server.poll() is not None:
            return True
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready"

    def _attend(self, process: Process, reached: Callable[[Process], bool]) -> None:
        """Wait until `reached(process)`. Stop the process and raise if START_SECONDS pass first, or
        if the caller ends."""
        deadline = time.monotonic() + START_SECONDS
        try:
            while not reached(process):
                if self.lifeline.cut(POLL_SECONDS):
                    raise Abandoned
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"PostgreSQL was not ready within {START_SECONDS:.0f} s; "
                        f"the end of its log:\n{self._log_end()}"
                    )
        except BaseException:
            stop(process)
            raise

    def _spawn(self, tool: str, *arguments: str) -> Process:
        account = UNPRIVILEGED if os.geteuid() == 0 else None
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(self.binaries / tool), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                user=account,
                group=account,
                extra_groups=None if account is None else [],
                # The server's children also hold the lock, until the last one has ended.
                pass_fds=() if self.lock is None else (self.lock,),
                preexec_fn=None if self.lock is None else end_with_parent(),
            )

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def environment() -> dict[str, str]:
    """The environment without the PG* variables, which would change the server's defaults. With a
    TZ, initdb does not search for the name of the local time zone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return inherited | {"LC_ALL": "C", "TZ": "UTC"}


def end_with_parent(number: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    """Return a function for `preexec_fn` that makes the child end with this process, even after
    kill -9. It only works on Linux. It must run after the change of user, which would undo it."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def arrange() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def give_away(path: Path) -> None:
    """Give `path` to the user that runs PostgreSQL, if that is another one than ours."""
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)


def choose_port(wish: int) -> int:
    """Return `wish` if it is free on the loopback address, otherwise a free port."""
    if wish:
        with socket.socket() as probe:
            # PostgreSQL does the same: it ignores connections in TIME_WAIT.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, wish))
                return wish
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: Process) -> None:
    """Try a fast shutdown, then an immediate one, then SIGKILL."""
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 8), (signal.SIGKILL, 5)):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def make_directory(temporary: Path) -> tuple[Path, int]:
    """Create a directory in `temporary`. Return it with a descriptor that holds its lock.

    The lock shows `sweep` that the directory is in use. The kernel releases it when the last
    process with the descriptor has ended. (systemd-tmpfiles respects the lock too.)
    """
    while True:
        directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=temporary))
        # If another process has swept the directory before it was locked, create another one.
        with suppress(FileNotFoundError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if directory.exists():
                    return directory, lock
            os.close(lock)


def sweep(temporary: Path) -> None:
    """Remove the directories of this user's servers whose supervisor was killed."""
    for directory in temporary.glob(f"{DIRECTORY_PREFIX}*"):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def remove(directory: Path) -> None:
    """Remove a directory, although processes that are ending may still create files in it."""
    deadline = time.monotonic() + 10
    shutil.rmtree(directory, ignore_errors=True)
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def run_throw_away(order: ThrowAway, lifeline: Lifeline) -> None:
    """Run the server until the caller ends or stops it. Then remove everything."""
    sweep(Path(order.temporary))
    directory, lock = make_directory(Path(order.temporary))
    try:
        if os.geteuid() == 0:
            # We list and lock the directory; PostgreSQL only needs to traverse it.
            directory.chmod(0o711)
        data = directory / "data"
        binaries = Path(order.binaries)
        cluster = Cluster(binaries, data, directory / "log", lifeline, lock)
        options = ["--no-sync"]
        if order.version >= 16:
            # The password is random, so more iterations would only make connections slower.
            options.append("--set=scram_iterations=1")
        locale = BUILTIN_LOCALE if order.version >= 17 else LIBRARY_LOCALE
        cluster.initialise(order.password, *options, locale=locale)
        server, port = cluster.start(order.settings)
        try:
            answer(port=port, data=str(data))
            while server.poll() is None and not lifeline.cut(0.5):
                pass
        finally:
            stop(server)
    finally:
        remove(directory)


def run_detached(order: Detached, lifeline: Lifeline) -> None:
    """Start the server and leave it running."""
    data, binaries, log = Path(order.data), Path(order.binaries), Path(order.log)
    if order.password is not None:
        # Rename the data directory only when it is complete.
        partial = data.with_name(f"{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        Cluster(binaries, partial, log, lifeline, None).initialise(order.password)
        partial.rename(data)
    _, port = Cluster(binaries, data, log, lifeline, None).start({}, port=order.port)
    answer(port=port, data=str(data))


def answer(**fields: str | int) -> None:
    # If the caller has ended, the lifeline notices it.
    with suppress(BrokenPipeError):
        print(json.dumps(fields), flush=True)


def main() -> None:
    lifeline = Lifeline()
    kind, order = sys.argv[1], sys.stdin.readline()
    try:
        if kind == "throw-away":
            run_throw_away(ThrowAway(**json.loads(order)), lifeline)
        else:
            run_detached(Detached(**json.loads(order)), lifeline)
    except Abandoned:
        pass
    except (ServerFailed, OSError) as failure:
        answer(error=str(failure))


if __name__ == "__main__":
    main()
