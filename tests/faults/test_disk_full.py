"""The disk of the database's tables fills up while payments pass, and is emptied again."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orchestration.testing import _supervisor
from tests.faults.conftest import SETTINGS, Run, for_seconds
from tests.faults.site import PATIENCE_SECONDS, Site, Undone, site
from tests.operations.restartable import restartable
from tests.operations.runbook import blocks, filled

SIZE = 64 * 2**20


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MB for a tablespace. The WAL is elsewhere: a server whose WAL has no room
    stops, and that is the scenario of a killed server."""
    made = folder / "disk"
    made.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "tmpfs", str(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.fail(f"a disk that fills up needs root, who may mount a tmpfs: {mounted.stderr}")
    try:
        tablespace = made / "tablespace"
        tablespace.mkdir()
        _supervisor.give_away(tablespace)
        yield made
    finally:
        subprocess.run(["umount", "--lazy", str(made)], check=True)


@pytest.fixture
def site_on_disk(folder: Path, disk: Path) -> Iterator[Site]:
    with restartable(SETTINGS) as server:
        server.start()
        with psycopg.connect(
            server.url.set(drivername="postgresql").render_as_string(hide_password=False),
            autocommit=True,
        ) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{disk / 'tablespace'}'".encode())
        with site(server, folder, tablespace="small") as at:
            yield at


def fill(disk: Path) -> Path:
    """A file that takes all the remaining space."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**16))
                file.flush()
        except OSError:
            os.truncate(filler, file.tell() // 4096 * 4096)
    return filler


def refused_writes(at: Site) -> int:
    return sum(count for error, count in at.errors.items() if error.endswith(" 53100"))


def await_refused_write(at: Site) -> None:
    """Wait until a client gets the error of the full disk: the last pages of the tables still have
    space."""
    before = refused_writes(at)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while refused_writes(at) == before:
        if time.monotonic() > deadline:
            raise Undone("no write was refused on the full disk")
        time.sleep(0.05)


@pytest.mark.invariant("INV-OUT-009")
def test_disk_full(site_on_disk: Site, run: Run, disk: Path) -> None:
    tablespaces, slots, _ = blocks("The disk is full")
    with run(site_on_disk), site_on_disk.superuser() as dba:
        for _ in for_seconds(20, every=2):
            filler = fill(disk)
            await_refused_write(site_on_disk)
            site_on_disk.faults["times disk full"] += 1
            assert "small" in {name for name, _ in dba.execute(filled(tablespaces))}
            assert dba.execute(filled(slots)).fetchall() == []
            filler.unlink()
