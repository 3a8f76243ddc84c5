"""Upgrades by other ways: as a script, in a host's environment, by a login that is no superuser,
in several databases at once."""

import io
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, create_engine, pool, text
from tools import scratch

from orchestration import schema
from tests.migrations.conftest import picture
from tests.support import connect

pytestmark = pytest.mark.own_cluster

HOST_ENV = """
from alembic import context
from sqlalchemy import create_engine, pool

with create_engine(context.config.attributes["url"], poolclass=pool.NullPool).begin() as connection:
    context.configure(connection=connection)
    context.run_migrations()
"""
HOST_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "host1"
down_revision = None
branch_labels = ("host",)
depends_on = None


def upgrade():
    op.create_table("business", sa.Column("id", sa.Integer()))


def downgrade():
    op.drop_table("business")
"""


@pytest.fixture
def migrator(cluster: scratch.Server) -> Iterator[URL]:
    """A login with CREATEROLE, and a database that belongs to it."""
    name = f"{scratch.PREFIX}migrator_{secrets.token_hex(4)}"
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(
            f"CREATE ROLE \"{name}\" LOGIN CREATEROLE PASSWORD '{name}' VALID UNTIL 'infinity'"
        )
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" OWNER "{name}"')
    yield cluster.url.set(username=name, password=name, database=name)
    scratch.drop_database(cluster, name)
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(f'DROP OWNED BY "{name}"')
        connection.exec_driver_sql(f'DROP ROLE "{name}"')


@pytest.fixture(autouse=True)
def no_roles_of_ours(cluster: scratch.Server) -> Iterator[None]:
    """Every test finds and leaves a cluster that has never seen us."""
    yield
    with scratch.maintenance(cluster.url) as connection:
        ours = connection.scalars(
            text("SELECT rolname FROM pg_catalog.pg_roles WHERE rolname ^@ 'symphony_'")
        )
        for role in list(ours):
            connection.exec_driver_sql(f"DROP ROLE {role}")


def script(url: URL, revision: str, *, down: bool = False) -> str:
    config = scratch.alembic_config(url)
    config.output_buffer = io.StringIO()
    (command.downgrade if down else command.upgrade)(config, revision, sql=True)
    return config.output_buffer.getvalue()


def run(url: URL, statements: str) -> None:
    with connect(url) as connection:
        connection.execute(statements)


def test_the_sql_script_makes_what_an_upgrade_makes(empty: URL) -> None:
    run(empty, script(empty, "head"))
    assert picture(empty) == schema.expected()
    command.check(scratch.alembic_config(empty))


def test_an_upgrade_follows_the_sql_script_of_the_way_down(empty: URL) -> None:
    scratch.upgrade(empty)
    run(empty, script(empty, "head:base", down=True))
    scratch.upgrade(empty)
    assert picture(empty) == schema.expected()


def test_several_databases_may_be_set_up_at_once_on_a_new_cluster(cluster: scratch.Server) -> None:
    with ExitStack() as stack:
        urls = []
        for _ in range(6):
            name = scratch.PREFIX + secrets.token_hex(8)
            urls.append(scratch.create_database(cluster, name))
            stack.callback(scratch.drop_database, cluster, name)
        upgrades = [
            subprocess.Popen(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=scratch.ROOT,
                env=os.environ | {"DATABASE_URL": url.render_as_string(hide_password=False)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for url in urls
        ]
        logs = [upgrade.communicate()[1] for upgrade in upgrades]
        failed = [log for log, ended in zip(logs, upgrades, strict=True) if ended.returncode != 0]
        assert failed == []
        for url in urls:
            assert picture(url) == schema.expected()


def test_a_login_with_createrole_upgrades_and_goes_down_again(migrator: URL) -> None:
    scratch.upgrade(migrator)
    assert picture(migrator) == schema.expected()
    scratch.downgrade(migrator, "base")
    scratch.upgrade(migrator)
    assert picture(migrator) == schema.expected()


def test_a_login_without_admin_on_roles_that_exist_is_refused_in_one_sentence(
    cluster: scratch.Server, empty: URL, migrator: URL
) -> None:
    scratch.upgrade(empty)
    if cluster.major < 16:
        # There CREATEROLE is ADMIN on every role.
        with scratch.maintenance(cluster.url) as connection:
            connection.exec_driver_sql(f'ALTER ROLE "{migrator.username}" NOCREATEROLE')
    with pytest.raises(CommandError) as refused:
        scratch.upgrade(migrator)
    assert "ADMIN" in str(refused.value)
    assert "symphony_owner" in str(refused.value)
    assert len(str(refused.value).strip().splitlines()) == 1


@pytest.fixture
def host(empty: URL, tmp_path: Path) -> Config:
    """A host service's own Alembic environment, which lists our revisions beside its own."""
    (tmp_path / "host").mkdir()
    (tmp_path / "env.py").write_text(HOST_ENV, "utf-8")
    (tmp_path / "host" / "host1_business.py").write_text(HOST_REVISION, "utf-8")
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "newline")
    locations = (tmp_path / "host", scratch.ROOT / "alembic" / "versions")
    config.set_main_option("version_locations", "\n".join(str(place) for place in locations))
    config.attributes["url"] = empty
    return config


def test_a_host_upgrades_our_branch_with_its_own_version_table(host: Config, empty: URL) -> None:
    command.upgrade(host, "heads")
    assert picture(empty) == schema.expected()
    with create_engine(empty, poolclass=pool.NullPool).connect() as connection:
        versions = connection.scalars(text("SELECT version_num FROM public.alembic_version"))
        assert set(versions) == {"host1", schema.REVISION}
        assert (
            connection.scalar(text("SELECT to_regclass('orchestration.alembic_version')")) is None
        )


def test_a_host_takes_our_branch_down_and_keeps_its_own(host: Config, empty: URL) -> None:
    command.upgrade(host, "heads")
    command.downgrade(host, "orchestration@base")
    with create_engine(empty, poolclass=pool.NullPool).connect() as connection:
        versions = connection.scalars(text("SELECT version_num FROM public.alembic_version"))
        assert set(versions) == {"host1"}
        assert connection.scalar(text("SELECT to_regclass('public.business')")) is not None


def test_a_host_s_login_with_createrole_upgrades_our_branch(host: Config, migrator: URL) -> None:
    host.attributes["url"] = migrator
    command.upgrade(host, "heads")
    assert picture(migrator) == schema.expected()
    command.downgrade(host, "orchestration@base")
