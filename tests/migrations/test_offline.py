"""Upgrades as a script that a DBA loads through psql: the same schema, by the same rights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import URL
from tools import scratch

from orchestration import schema
from tests.migrations import evidence
from tests.migrations.conftest import picture
from tests.migrations.operator import psql, script, sentence, statements
from tests.support import connect, scalar

# The logins go after the databases.
pytestmark = [pytest.mark.own_cluster, pytest.mark.usefixtures("plain_login")]

SCRIPTS = ScriptDirectory(str(scratch.ROOT / "alembic"))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
BEFORE_HEAD = REVISIONS[-2]
UPGRADE_LOCK = 0x6F7263686D696772


@pytest.fixture(params=["a superuser", "a plain login"])
def loader(request: pytest.FixtureRequest, empty: URL, plain_login: Callable[..., URL]) -> URL:
    """An empty database, and who may upgrade it."""
    if request.param == "a superuser":
        return empty
    login = plain_login("CREATEROLE")
    with scratch.maintenance(empty) as connection:
        connection.exec_driver_sql(
            f'GRANT CREATE ON DATABASE {empty.database} TO "{login.username}"'
        )
    return login.set(database=empty.database)


def loaded(url: URL, statements: str, folder: Path) -> None:
    ran = psql(url, statements, folder)
    assert ran.returncode == 0, ran.stderr


def at(url: URL) -> str:
    with connect(url) as connection:
        recorded = scalar(connection, "SELECT revision FROM orchestration.schema_revision")
        assert recorded == scalar(
            connection, "SELECT version_num FROM orchestration.alembic_version"
        )
        return str(recorded)


def test_the_script_makes_what_an_upgrade_makes(empty: URL, loader: URL, tmp_path: Path) -> None:
    loaded(loader, script("upgrade", "base:head"), tmp_path)
    assert picture(empty) == schema.expected()
    assert at(empty) == schema.REVISION
    command.check(scratch.alembic_config(loader))
    with connect(empty) as connection:
        owner = scalar(
            connection,
            "SELECT relowner::regrole::text FROM pg_catalog.pg_class"
            " WHERE oid = 'orchestration.alembic_version'::regclass",
        )
    assert owner == "symphony_owner"


def test_scripts_of_one_revision_each_make_it_too(empty: URL, loader: URL, tmp_path: Path) -> None:
    for start, end in zip(["base", *REVISIONS], REVISIONS, strict=False):
        loaded(loader, script("upgrade", f"{start}:{end}"), tmp_path)
        assert at(empty) == end
    assert picture(empty) == schema.expected()


def test_the_script_of_the_way_down_leaves_what_a_downgrade_leaves(
    empty: URL, loader: URL, tmp_path: Path
) -> None:
    scratch.upgrade(loader)
    scratch.downgrade(loader, "base")
    left = picture(empty)
    scratch.upgrade(loader)
    loaded(loader, script("downgrade", "head:base"), tmp_path)
    assert picture(empty) == left


@pytest.mark.parametrize("down", ["online", "by script"])
def test_the_script_is_loaded_again_after_a_downgrade(
    empty: URL, loader: URL, tmp_path: Path, down: str
) -> None:
    loaded(loader, script("upgrade", "base:head"), tmp_path)
    if down == "online":
        scratch.downgrade(loader, "base")
    else:
        loaded(loader, script("downgrade", "head:base"), tmp_path)
    loaded(loader, script("upgrade", "base:head"), tmp_path)
    assert picture(empty) == schema.expected()
    assert at(empty) == schema.REVISION


def test_script_and_upgrade_take_turns(empty: URL, loader: URL, tmp_path: Path) -> None:
    scratch.upgrade(loader, "0001")
    loaded(loader, script("upgrade", f"0001:{BEFORE_HEAD}"), tmp_path)
    scratch.upgrade(loader)
    assert picture(empty) == schema.expected()


@pytest.mark.parametrize(
    ("verb", "revisions", "start"),
    [
        ("upgrade", "base:head", "base"),
        ("upgrade", f"{BEFORE_HEAD}:head", BEFORE_HEAD),
        ("downgrade", "head:base", schema.REVISION),
    ],
)
def test_a_script_for_another_revision_says_where_the_database_is_and_changes_nothing(
    empty: URL, tmp_path: Path, verb: str, revisions: str, start: str
) -> None:
    scratch.upgrade(empty, "0001")
    before = picture(empty)
    told = sentence(psql(empty, script(verb, revisions), tmp_path))
    assert told.startswith(f"This script starts at {start} and the database is at 0001: ")
    assert picture(empty) == before
    assert at(empty) == "0001"


def test_a_script_that_does_not_start_at_base_is_refused_on_an_empty_database(
    empty: URL, tmp_path: Path
) -> None:
    told = sentence(psql(empty, script("upgrade", "0001:head"), tmp_path))
    assert told.startswith("This script starts at 0001 and the database is at base: ")


def test_a_script_does_not_wait_for_another_upgrade(empty: URL, tmp_path: Path) -> None:
    with connect(empty) as upgrade:
        upgrade.execute("SELECT pg_advisory_lock(%s)", (UPGRADE_LOCK,))
        told = sentence(psql(empty, script("upgrade", "base:head"), tmp_path))
        assert told.startswith("Another upgrade of this database is running")
        assert scalar(upgrade, "SELECT to_regnamespace('orchestration')") is None
    loaded(empty, script("upgrade", "base:head"), tmp_path)
    assert picture(empty) == schema.expected()


def test_a_script_that_meets_a_lock_stops_between_two_revisions_and_another_goes_on(
    empty: URL, tmp_path: Path
) -> None:
    scratch.upgrade(empty, BEFORE_HEAD)
    scratch.downgrade(empty, "-1")
    start = at(empty)
    before = picture(empty)
    with connect(empty) as reader:
        with reader.transaction():
            reader.execute("LOCK TABLE orchestration.schema_revision IN SHARE MODE")
            told = sentence(psql(empty, script("upgrade", f"{start}:head"), tmp_path))
        assert told == "canceling statement due to lock timeout"
    assert picture(empty) == before
    assert at(empty) == start
    loaded(empty, script("upgrade", f"{start}:head"), tmp_path)
    assert picture(empty) == schema.expected()


def test_a_session_that_has_loaded_a_script_goes_on_without_its_lock_and_limits(
    empty: URL,
) -> None:
    settings = (
        "SELECT name, setting FROM pg_catalog.pg_settings WHERE name !~ '^plpgsql' ORDER BY name"
    )
    with connect(empty) as session:
        before = session.execute(settings).fetchall()
        session.execute(statements(script("upgrade", "base:head")))
        assert session.execute(settings).fetchall() == before
        assert scalar(session, "SELECT session_user = current_user") is True
        held = "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"
        assert scalar(session, held) == 0


def test_a_script_reads_the_same_in_every_client_encoding() -> None:
    assert script("upgrade", "base:head").isascii()
    assert script("downgrade", "head:base").isascii()


@pytest.mark.parametrize("revision", evidence.WRITTEN_BY)
def test_a_script_of_the_way_down_looks_for_evidence_when_it_is_loaded(
    empty: URL, tmp_path: Path, revision: str
) -> None:
    scratch.upgrade(empty, revision)
    with connect(empty) as connection:
        evidence.fill(connection, revision)
    before = picture(empty)
    way = f"{revision}:{REVISIONS[REVISIONS.index(revision) - 1]}"

    told = sentence(psql(empty, script("downgrade", way), tmp_path))

    assert "contains evidence" in told or "contain evidence" in told
    assert told.endswith("; to destroy it, pass -x destroy-evidence=yes")
    assert picture(empty) == before
    assert at(empty) == revision

    loaded(empty, script("downgrade", f"{revision}:base", destroy_evidence=True), tmp_path)
    scratch.upgrade(empty)
    assert picture(empty) == schema.expected()
