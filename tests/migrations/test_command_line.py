"""`alembic` as an operator runs it: a process of its own."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import scratch, versions

from tests.migrations.conftest import picture
from tests.migrations.operator import alembic, ini
from tests.support import connect


@pytest.fixture
def empty(server: scratch.Server) -> Iterator[URL]:
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(server, name)
    scratch.drop_database(server, name)


def test_twenty_upgrades_of_one_database_at_once_all_succeed(
    empty: URL, database: scratch.Database
) -> None:
    upgrades = [alembic("upgrade", "head", database_url=empty) for _ in range(20)]
    logs = [upgrade.communicate()[1] for upgrade in upgrades]
    failed = [log for log, ended in zip(logs, upgrades, strict=True) if ended.returncode != 0]
    assert failed == []
    assert sum("Running upgrade" in log for log in logs) == 1, "the others found it done"
    assert picture(empty) == picture(database.url)


def test_without_a_database_the_two_ways_to_name_one_are_told_in_one_sentence(
    tmp_path: Path,
) -> None:
    # The development server is looked for beside alembic.ini.
    refused = alembic("-c", str(ini(tmp_path)), "upgrade", "head")
    out, err = refused.communicate()
    assert refused.returncode != 0
    # Alembic says it twice: to the terminal and to its log.
    said = [line for line in (out + err).splitlines() if line]
    assert said[0].startswith("FAILED: No database: ")
    for line in said:
        assert "DATABASE_URL" in line
        assert "make db" in line


def test_a_server_that_does_not_answer_is_told_without_a_traceback() -> None:
    nowhere = URL.create("postgresql+psycopg", "nobody", "secret", "127.0.0.1", 1, "nothing")
    refused = alembic("upgrade", "head", database_url=nowhere)
    out, err = refused.communicate()
    assert refused.returncode != 0
    assert "The server cannot be reached" in out + err
    assert "Traceback" not in out + err
    assert "secret" not in out + err


def test_a_refused_downgrade_is_told_without_a_traceback(empty: URL) -> None:
    scratch.upgrade(empty)
    with connect(empty) as connection:
        connection.execute(
            "SELECT FROM orchestration.rotate_policy_version('v1', 'test', repeat('0', 64), '0')"
        )
    refused = alembic("downgrade", "orchestration@0001", database_url=empty)
    out, err = refused.communicate()
    assert refused.returncode != 0
    assert "-x destroy-evidence=yes" in out + err
    assert "Traceback" not in out + err

    obeyed = alembic("-x", "destroy-evidence=yes", "downgrade", "0001", database_url=empty)
    obeyed.communicate()
    assert obeyed.returncode == 0
    with connect(empty) as connection:
        row = connection.execute("SELECT revision FROM orchestration.schema_revision").fetchone()
    assert row == ("0001",)


def test_the_url_may_leave_the_driver_out(empty: URL, database: scratch.Database) -> None:
    upgraded = alembic("upgrade", "head", database_url=empty.set(drivername="postgresql"))
    upgraded.communicate()
    assert upgraded.returncode == 0
    assert picture(empty) == picture(database.url)


def test_no_landed_revision_was_edited() -> None:
    assert versions.main("check") == 0
