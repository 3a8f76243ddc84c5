"""Upgrades by other ways: in a host's environment, in several databases at once."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, pool, text
from tools import scratch

from orchestration import schema
from tests.migrations.conftest import forget_roles, picture
from tests.migrations.operator import alembic, failures

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
    forget_roles(cluster)


def test_eight_databases_may_be_set_up_at_once_on_a_new_cluster(eight: list[URL]) -> None:
    assert failures([alembic("upgrade", "head", database_url=url) for url in eight]) == []
    for url in eight:
        assert picture(url) == schema.expected()


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
