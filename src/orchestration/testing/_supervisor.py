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
"""The user and group that PostgreSQL, which refuses to run as root, gets instead of root."""

HOST = "127.0.0.1"
START_SECONDS = 60.0
START_ATTEMPTS = 5
POLL_SECONDS = 0.005
DIRECTORY_PREFIX = "orchestration-server-"
LOG_LINES = 15

# The built-in locale is the same on every platform, whatever its C library offers.
BUILTIN_LOCALE = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
# Before 17 there is only the C library's.
LIBRARY_LOCALE = ("--locale=C", "--lc-ctype=C.UTF-8")

_PR_SET_PDEATHSIG = 1

Process: TypeAlias = "subprocess.Popen[bytes]"


class ServerFailed(Exception):
    """PostgreSQL did not do what was asked; the message ends with the last lines of its log."""


class Abandoned(Exception):
    """The caller went away, or withdrew its order, before the server was up."""


@dataclass(frozen=True)
class ThrowAway:
    """Order for a server that ends with the caller, in a directory that ends with the server.
    `version` is the major version of the binaries."""

    binaries: str
    version: int
    temporary: str
    password: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Detached:
    """Order for a server that outlives the caller. With a password the data directory is made
    first; the port is a wish, replaced by a free one when it is taken."""

    binaries: str
    data: str
    log: str
    port: int
    password: str | None


class Lifeline:
    """Tells whether the caller still wants the server."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._dismissed = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._dismiss)

    def _dismiss(self, _number: int, _frame: object) -> None:
        self._dismissed = True

    def cut(self, seconds: float) -> bool:
        """Wait up to `seconds` for the caller to end, or to dismiss us by a signal."""
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        # A child that the caller forked holds the pipe open beyond the caller's end; the change of
        # our parent shows that end nevertheless.
        return bool(readable) or self._dismissed or os.getppid() != self._parent


@dataclass(frozen=True)
class Cluster:
    """A data directory and the means to initialise it and to start a server on it.

    `lock` is the descriptor of a locked directory, for a server that must not outlive this process;
    None for one that shall.
    """

    binaries: Path
    data: Path
    log: Path
    lifeline: Lifeline
    lock: int | None

    def initialise(
        self, password: str, *options: str, locale: Sequence[str] = BUILTIN_LOCALE
    ) -> None:
        """Make the data directory, its superuser `postgres` having this password."""
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
        """Start the server, on `port` if that is free, and return when it accepts connections."""
        # Later settings win: the caller may replace the first, never the last.
        given = {"unix_socket_directories": "", **settings, "listen_addresses": HOST}
        options = [word for name, value in given.items() for word in ("-c", f"{name}={value}")]
        for _ in range(START_ATTEMPTS):
            chosen = choose_port(port)
            server = self._spawn("postgres", "-D", str(self.data), *options, "-p", str(chosen))
            self._attend(server, self._settled)
            if server.poll() is None:
                return server, chosen
            # Somebody may have taken the port since it was chosen. Any other cause fails again at
            # once, so there is no need to tell the causes apart by the wording of the log.
        raise ServerFailed(f"PostgreSQL did not start; the end of its log:\n{self._log_end()}")

    def _settled(self, server: Process) -> bool:
        """Whether the server has ended or is ready, by its own word in its pid file."""
        if server.poll() is not None:
            return True
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready"

    def _attend(self, process: Process, reached: Callable[[Process], bool]) -> None:
        """Wait until `reached`; stop the process if that takes too long or the caller has gone."""
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
                # The children hold the directory's lock too: it is free when the last one is gone.
                pass_fds=() if self.lock is None else (self.lock,),
                preexec_fn=None if self.lock is None else end_with_parent(),
            )

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def environment() -> dict[str, str]:
    """Ours without the PG* variables, which would change the server's defaults. A given TZ spares
    initdb the search for the name of the local time zone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return inherited | {"LC_ALL": "C", "TZ": "UTC"}


def end_with_parent(number: signal.Signals = signal.SIGINT) -> Callable[[], None]:
    """What a child runs before exec, so that even kill -9 of this process ends it; nothing where
    the platform offers no such thing. It runs after the change of user, which would undo it."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def arrange() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def give_away(path: Path) -> None:
    """Hand `path` to the user that PostgreSQL runs as, if that is not ours."""
    if os.geteuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)


def choose_port(wish: int) -> int:
    """`wish`, if it is free on the loopback address, else one that the system picks."""
    if wish:
        with socket.socket() as probe:
            # As PostgreSQL does: a connection of its predecessor in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, wish))
                return wish
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: Process) -> None:
    """Fast shutdown, then immediate shutdown, then the end without asking."""
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 8), (signal.SIGKILL, 5)):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def make_directory(temporary: Path) -> tuple[Path, int]:
    """A new directory in `temporary` and a descriptor that holds its lock.

    The lock tells `sweep` that the directory is in use: the kernel frees it when the last process
    that holds the descriptor has ended, and only then. (systemd-tmpfiles respects it too.)
    """
    while True:
        directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=temporary))
        # A sweep may have seen the directory before it was locked: then take another.
        with suppress(FileNotFoundError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if directory.exists():
                    return directory, lock
            os.close(lock)


def sweep(temporary: Path) -> None:
    """Remove the directories that servers of this user left when they and we were killed."""
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
    """Remove a directory in which processes that end at this moment may still make files."""
    deadline = time.monotonic() + 10
    shutil.rmtree(directory, ignore_errors=True)
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def run_throw_away(order: ThrowAway, lifeline: Lifeline) -> None:
    """Serve until the caller is gone or has had enough, and leave nothing."""
    sweep(Path(order.temporary))
    directory, lock = make_directory(Path(order.temporary))
    try:
        if os.geteuid() == 0:
            # Ours to list and to lock, PostgreSQL's only to pass through.
            directory.chmod(0o711)
        data = directory / "data"
        binaries = Path(order.binaries)
        cluster = Cluster(binaries, data, directory / "log", lifeline, lock)
        options = ["--no-sync"]
        if order.version >= 16:
            # The password is random: stretching it would only slow every connection down.
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
    """Bring the server up and leave it."""
    data, binaries, log = Path(order.data), Path(order.binaries), Path(order.log)
    if order.password is not None:
        # Only a complete data directory gets its name.
        partial = data.with_name(f"{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        Cluster(binaries, partial, log, lifeline, None).initialise(order.password)
        partial.rename(data)
    _, port = Cluster(binaries, data, log, lifeline, None).start({}, port=order.port)
    answer(port=port, data=str(data))


def answer(**fields: str | int) -> None:
    # A caller that is gone is noticed by the lifeline.
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
