"""env.py: commands that look write nothing, and every refusal is one sentence."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, text
from tools import scratch

from orchestration import schema
from tests.migrations.conftest import picture
from tests.support import connect

pytestmark = pytest.mark.own_cluster

UPGRADE_LOCK = 0x6F7263686D696772
REVISIONS = [
    script.revision for script in ScriptDirectory(str(scratch.ROOT / "alembic")).walk_revisions()
]


def check(config: Config) -> None:
    with pytest.raises(CommandError, match="not up to date"):
        command.check(config)


LOOKING: dict[str, Callable[[Config], None]] = {
    "current": command.current,
    "history": lambda config: command.history(config, indicate_current=True),
    "check": check,
}


def printed(url: URL, work: Callable[[Config], None]) -> str:
    config = scratch.alembic_config(url)
    config.stdout = io.StringIO()
    work(config)
    return config.stdout.getvalue()


# First in this file: the roles that the other tests make stay in the module's cluster.
@pytest.mark.parametrize("name", LOOKING)
def test_a_command_that_looks_leaves_an_empty_server_empty(
    cluster: scratch.Server, empty: URL, name: str
) -> None:
    printed(empty, LOOKING[name])
    assert printed(empty, command.current) == ""
    with scratch.maintenance(empty) as connection:
        count = "SELECT count(*) FROM pg_catalog."
        assert connection.scalar(text(count + "pg_roles WHERE rolname ^@ 'symphony_'")) == 0
        assert connection.scalar(text(count + "pg_namespace WHERE nspname = 'orchestration'")) == 0


def test_a_command_that_looks_waits_for_no_upgrade(empty: URL) -> None:
    scratch.upgrade(empty)
    with connect(empty) as upgrade:
        upgrade.execute("SELECT pg_advisory_lock(%s)", (UPGRADE_LOCK,))
        assert printed(empty, command.current).startswith(schema.REVISION)
        assert f"{schema.REVISION} (orchestration) (head) (current)" in printed(
            empty, LOOKING["history"]
        )
        command.check(scratch.alembic_config(empty))


def test_stamp_makes_the_place_for_its_version(empty: URL) -> None:
    command.stamp(scratch.alembic_config(empty), "0001")
    assert printed(empty, command.current).startswith("0001")


@pytest.mark.parametrize("destination", [f"+{len(REVISIONS)}", "heads", "orchestration@head"])
def test_every_form_of_destination_is_an_upgrade(empty: URL, destination: str) -> None:
    scratch.upgrade(empty, destination)
    assert picture(empty) == schema.expected()
    scratch.downgrade(empty, "-1")
    assert printed(empty, command.current).startswith(REVISIONS[1])


def test_current_by_a_runtime_role_says_where_the_revision_stands(
    cluster: scratch.Server, empty: URL
) -> None:
    scratch.upgrade(empty)
    with scratch.logins(cluster) as logins:
        url = logins["ingest"].set(database=empty.database)
        with pytest.raises(CommandError) as refused:
            printed(url, command.current)
        assert "orchestration.schema_revision" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        with connect(url) as connection:
            found = connection.execute("SELECT revision FROM orchestration.schema_revision")
            assert found.fetchone() == (schema.REVISION,)
        with pytest.raises(CommandError) as refused:
            scratch.upgrade(url)
        assert len(str(refused.value).splitlines()) == 1


def test_a_login_of_the_owner_role_may_look(cluster: scratch.Server, empty: URL) -> None:
    scratch.upgrade(empty)
    name = f"{scratch.PREFIX}operator"
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(
            f"CREATE ROLE {name} LOGIN PASSWORD '{name}' IN ROLE symphony_owner"
        )
    try:
        url = empty.set(username=name, password=name)
        assert printed(url, command.current).startswith(schema.REVISION)
        command.check(scratch.alembic_config(url))
    finally:
        with scratch.maintenance(cluster.url) as connection:
            connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.mark.parametrize("url", ["secret", "mysql://u:secret@h/d", "sqlite:///secret.db"])
def test_a_url_of_another_kind_is_refused_and_makes_no_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(scratch.ROOT / "alembic.ini")
    config.attributes["configure_logger"] = False
    monkeypatch.setenv("DATABASE_URL", url)
    for work in (command.current, lambda config: command.upgrade(config, "head")):
        with pytest.raises(CommandError) as refused:
            work(config)
        assert "postgresql+psycopg://user:password@host:port/database" in str(refused.value)
        assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
