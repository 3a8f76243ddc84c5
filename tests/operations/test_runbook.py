"""Every command of docs/runbook.md, run in the situation that it is for, as the login of the DBA on
call if that login is sufficient.

The clock and the disk are in tests/faults.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from tools import scratch

from tests.operations import support
from tests.operations.runbook import PAGE, blocks, filled
from tests.support import Connect, await_blocked, backend, connect, scalar

pytestmark = [pytest.mark.own_cluster, pytest.mark.superuser]

SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",
    "max_connections": "20",
    "max_locks_per_transaction": "10",
    "max_prepared_transactions": "2",
}
ENGAGE = (
    "SELECT FROM orchestration.engage_kill_switch(p_scope => 'GLOBAL', p_reason => 'test',"
    " p_engaged_by => 'test')"
)
MOST_LOCKS = 100_000


def settings() -> dict[str, str]:
    said = subprocess.run(
        [scratch.programs() / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    # postgres (PostgreSQL) 18.6
    major = int(said.split()[2].partition(".")[0])
    return SETTINGS | ({"reserved_connections": "3"} if major >= 16 else {})


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[scratch.Server, scratch.Database]]:
    with scratch.own_server(settings()) as at, scratch.database(at) as database:
        with scratch.maintenance(at.url) as connection:
            login, reserved = blocks("The login for the DBA on call")
            connection.exec_driver_sql(login)
            if at.major >= 16:
                connection.exec_driver_sql(reserved)
        yield at, database


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def dba(site: tuple[scratch.Server, scratch.Database], opened: ExitStack) -> Connect:
    _, database = site
    return opened.enter_context(connect(database.url.set(username="dba_on_call", password="...")))


@pytest.fixture
def superuser(site: tuple[scratch.Server, scratch.Database], opened: ExitStack) -> Connect:
    return opened.enter_context(connect(site[1].url))


@pytest.fixture
def login(
    site: tuple[scratch.Server, scratch.Database], opened: ExitStack
) -> Callable[[str], Connect]:
    def open_one(role: str) -> Connect:
        # A session that was ended cannot be closed normally.
        connection = connect(site[1].as_role(role))
        opened.callback(connection.close)
        return connection

    return open_one


def ask(connection: Connect, block: str, **variables: object) -> list[dict[str, Any]]:
    cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
    return cursor.execute(filled(block, **variables)).fetchall()


def ended(connection: Connect) -> str | None:
    with pytest.raises(psycopg.OperationalError) as lost:
        connection.execute("SELECT 1")
    return lost.value.sqlstate


def test_every_command_of_the_page_is_in_an_entry() -> None:
    headings = [line[3:] for line in PAGE.splitlines() if line.startswith("## ")]
    assert PAGE.count("```sql") == sum(len(blocks(heading)) for heading in headings)


def test_the_dba_gets_in_when_services_use_all_connections(
    site: tuple[scratch.Server, scratch.Database], login: Callable[[str], Connect]
) -> None:
    at, database = site

    def use_all() -> None:
        for _ in range(int(SETTINGS["max_connections"])):
            login("executor")

    with pytest.raises(psycopg.OperationalError, match="slots are reserved"):
        use_all()
    if at.major >= 16:
        connect(database.url.set(username="dba_on_call", password="...")).close()
    # On 15 only a superuser can connect.
    connect(database.url).close()


@pytest.mark.invariant("INV-KIL-002")
def test_the_kill_switch_does_not_get_in(
    dba: Connect, superuser: Connect, login: Callable[[str], Connect]
) -> None:
    waits, end, engaged = blocks("Engaging a kill switch hangs")
    control, executor = login("control"), login("executor")
    executor.execute("BEGIN")
    # A claim takes the gate of the kill switch, and keeps it until its transaction ends.
    executor.execute("SELECT FROM orchestration.claim_outbox_batch('worker', 1, '1 minute')")
    executor.execute("SET idle_in_transaction_session_timeout = 0")
    engaging = threading.Thread(target=control.execute, args=(ENGAGE,))
    engaging.start()
    await_blocked(superuser, backend(control))
    [found] = ask(dba, waits)
    assert (found["waiting_pid"], found["blocking_pid"]) == (backend(control), backend(executor))
    assert (found["usename"], found["state"]) == (executor.info.user, "idle in transaction")
    assert ask(dba, end, pid=found["blocking_pid"]) == [{"pg_terminate_backend": True}]
    engaging.join(30)
    assert not engaging.is_alive()
    assert ended(executor) == "57P01"
    assert ask(dba, engaged) == [{"scope": "GLOBAL", "target": None}]
    control.execute(
        "SELECT FROM orchestration.release_kill_switch(p_scope => 'GLOBAL', p_reason => 'test',"
        " p_released_by => 'test')"
    )
    assert ask(dba, waits) == []


def test_a_gate_is_held(dba: Connect, login: Callable[[str], Connect]) -> None:
    holders, end = blocks("A gate is held")
    ingest = login("ingest")
    ingest.execute("BEGIN")
    ingest.execute(
        "SELECT FROM orchestration.require_credential_not_revoked(p_token_hash => repeat('0', 64))"
    )
    [found] = ask(dba, holders)
    assert (found["gate"], found["pid"]) == ("orchestration.revocation_gate", backend(ingest))
    assert (found["usename"], found["state"]) == (ingest.info.user, "idle in transaction")
    assert ask(dba, end, pid=found["pid"]) == [{"pg_terminate_backend": True}]
    assert ended(ingest) == "57P01"
    assert ask(dba, holders) == []


def test_the_lock_table_is_full(
    site: tuple[scratch.Server, scratch.Database],
    dba: Connect,
    superuser: Connect,
    login: Callable[[str], Connect],
) -> None:
    holders, capacity, stop = blocks("The lock table is full")
    sessions, end = blocks("The lock table is full", "sh")
    squatter = login("readonly")
    with pytest.raises(psycopg.errors.OutOfMemory) as full:
        squatter.execute(
            "SELECT pg_advisory_lock(n) FROM generate_series(1, %s) AS n", (MOST_LOCKS,)
        )
    assert full.value.sqlstate == "53200"
    with pytest.raises(psycopg.OperationalError, match="out of shared memory"):
        connect(site[1].url)
    with pytest.raises(psycopg.errors.OutOfMemory):
        dba.execute("SELECT FROM pg_stat_activity")
    found = ask(superuser, holders)[0]
    assert (found["pid"], found["locktype"]) == (backend(squatter), "advisory")
    [listed] = [line for line in run(sessions).splitlines() if line.split()[0] == str(found["pid"])]
    assert str(squatter.info.user) in listed
    run(end, pid=str(found["pid"]))
    await_end(superuser, found["pid"])
    assert ended(squatter) == "57P01"
    [size] = ask(dba, capacity)
    assert size["taken"] < size["sized_for"] <= found["locks"]
    superuser.execute(filled(stop, login=squatter.info.user))
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        login("readonly")
    superuser.execute(f'ALTER ROLE "{squatter.info.user}" LOGIN'.encode())


def run(script: str, **variables: str) -> str:
    return subprocess.run(
        ["bash", "-ec", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def await_end(observer: Connect, pid: int) -> None:
    deadline = time.monotonic() + 10
    while scalar(observer, "SELECT count(*) FROM pg_stat_get_activity(%s)", (pid,)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_prepared_transaction_is_forgotten(
    dba: Connect, superuser: Connect, login: Callable[[str], Connect]
) -> None:
    prepared, roll_back = blocks("A prepared transaction is forgotten")
    holders, _ = blocks("A gate is held")
    waits = blocks("Engaging a kill switch hangs")[0]
    [monitor] = support.blocks("Server settings", "sql")
    executor, control = login("executor"), login("control")
    executor.execute("BEGIN")
    executor.execute("SELECT FROM orchestration.claim_outbox_batch('worker', 1, '1 minute')")
    executor.execute("PREPARE TRANSACTION 'forgotten'")
    [found] = ask(dba, prepared)
    assert (found["gid"], found["owner"]) == ("forgotten", executor.info.user)
    assert "orchestration.kill_switch_gate" in found["gates"]
    assert "orchestration.kill_switch_gate" in {
        row["gate"] for row in ask(dba, holders) if row["pid"] is None
    }
    assert ask(dba, monitor) == [], "younger than a minute"
    old = monitor.replace("interval '1 minute'", "interval '0'")
    assert [row["gid"] for row in ask(dba, old)] == ["forgotten"]

    engaging = threading.Thread(target=control.execute, args=(ENGAGE,))
    engaging.start()
    await_waiting(superuser, backend(control))
    assert [row["blocking_pid"] for row in ask(dba, waits)] == [0]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        dba.execute(filled(roll_back, gid="forgotten"))
    superuser.execute(filled(roll_back, gid="forgotten"))
    engaging.join(30)
    assert not engaging.is_alive()
    assert ask(dba, prepared) == []
    control.execute(
        "SELECT FROM orchestration.release_kill_switch(p_scope => 'GLOBAL', p_reason => 'test',"
        " p_released_by => 'test')"
    )


def await_waiting(observer: Connect, pid: int) -> None:
    deadline = time.monotonic() + 10
    while not scalar(
        observer, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)", (pid,)
    ):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_clock_and_the_disk_are_looked_at_with_the_same_login(
    dba: Connect, superuser: Connect, login: Callable[[str], Connect]
) -> None:
    compare, waiting = blocks("The clock has jumped")
    tablespaces, slots, drop_slot = blocks("The disk is full")
    control = login("control")
    control.execute(ENGAGE)
    control.execute(
        "SELECT FROM orchestration.release_kill_switch(p_scope => 'GLOBAL', p_reason => 'test',"
        " p_released_by => 'test')"
    )
    [now] = ask(dba, compare)
    assert now["seconds_ahead"] <= 0
    assert ask(dba, waiting) == []
    assert {row["spcname"] for row in ask(dba, tablespaces)} == {"pg_default", "pg_global"}
    superuser.execute("SELECT pg_create_physical_replication_slot('abandoned', true)")
    assert [row["slot_name"] for row in ask(dba, slots)] == ["abandoned"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        dba.execute(filled(drop_slot, slot="abandoned"))
    superuser.execute(filled(drop_slot, slot="abandoned"))
    assert ask(dba, slots) == []
