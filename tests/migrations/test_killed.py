"""Upgrades that are killed: whatever the moment, the next one finishes them."""

import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from sqlalchemy import URL
from tools import scratch

from orchestration import schema
from tests.migrations.conftest import forget_roles, picture
from tests.migrations.operator import alembic, failures
from tests.support import connect, scalar

# The logins go after the databases.
pytestmark = [pytest.mark.own_cluster, pytest.mark.usefixtures("plain_login")]

SEED = 7101


def begun(url: URL) -> "subprocess.Popen[str]":
    """An upgrade that has said its first words, and is about to look for its version table."""
    upgrade = alembic("upgrade", "head", database_url=url)
    assert upgrade.stderr is not None
    assert "Context impl" in upgrade.stderr.readline()
    return upgrade


@pytest.fixture(scope="module")
def whole(cluster: scratch.Server) -> float:
    """How many seconds the revisions take here, and the end of the process."""
    name = scratch.PREFIX + "whole"
    url = scratch.create_database(cluster, name)
    try:
        upgrade = begun(url)
        since = time.monotonic()
        assert failures([upgrade]) == []
        return time.monotonic() - since
    finally:
        scratch.drop_database(cluster, name)
        forget_roles(cluster)


def reached(url: URL) -> str:
    """The revision of a database whose upgrade was killed, which its two records agree on."""
    with connect(url) as connection:
        tables = "SELECT to_regclass('orchestration.schema_revision') IS NOT NULL"
        if not scalar(connection, tables):
            return "base"
        row = connection.execute(
            "SELECT (SELECT revision FROM orchestration.schema_revision),"
            " (SELECT version_num FROM orchestration.alembic_version)"
        ).fetchone()
    assert row is not None
    assert row[0] == row[1], "half a revision"
    return str(row[0])


@pytest.mark.parametrize("who", ["a superuser", "a plain login"])
@pytest.mark.parametrize("moment", range(5))
def test_an_upgrade_killed_at_any_moment_is_finished_by_the_next(
    whole: float, empty: URL, plain_login: Callable[..., URL], moment: int, who: str
) -> None:
    url = empty
    if who == "a plain login":
        login = plain_login("CREATEROLE")
        with scratch.maintenance(empty) as connection:
            connection.exec_driver_sql(
                f'GRANT CREATE ON DATABASE {empty.database} TO "{login.username}"'
            )
        url = login.set(database=empty.database)
    delay = random.Random(f"{SEED}/{moment}/{who}").uniform(0, whole)
    upgrade = begun(url)
    time.sleep(delay)
    upgrade.kill()
    upgrade.communicate()
    assert upgrade.returncode in (-signal.SIGKILL, 0)
    told = f"killed after {delay:.3f} of {whole:.3f} s, at {reached(empty)}"
    print(told)

    assert failures([alembic("upgrade", "head", database_url=url)]) == [], told

    assert picture(empty) == schema.expected(), told
    assert reached(empty) == schema.REVISION
