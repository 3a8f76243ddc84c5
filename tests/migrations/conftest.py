"""A cluster for tests that make and drop roles, and how to look at what a revision leaves."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import URL, create_engine, pool, text
from tools import scratch

from orchestration import schema


@pytest.fixture(scope="module")
def cluster() -> Iterator[scratch.Server]:
    """A server of the module's own: no other test's logins hold its roles."""
    with scratch.own_server({"fsync": "off"}) as at:
        yield at


@pytest.fixture
def empty(cluster: scratch.Server) -> Iterator[URL]:
    """A database with nothing in it, alone on the cluster when it goes."""
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(cluster, name)
    scratch.drop_database(cluster, name)


@pytest.fixture
def other(cluster: scratch.Server) -> Iterator[URL]:
    """A second database of the same cluster."""
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(cluster, name)
    scratch.drop_database(cluster, name)


@pytest.fixture
def eight(cluster: scratch.Server) -> Iterator[list[URL]]:
    """Eight databases of the same cluster."""
    with ExitStack() as stack:
        made = []
        for _ in range(8):
            name = scratch.PREFIX + secrets.token_hex(8)
            made.append(scratch.create_database(cluster, name))
            stack.callback(scratch.drop_database, cluster, name)
        yield made


@pytest.fixture
def plain_login(cluster: scratch.Server) -> Iterator[Callable[..., URL]]:
    """Makes logins that are no superusers, with the attributes given: `plain_login("CREATEROLE")`.
    The cluster is left as one that has never seen us; name it before the databases, which go first.
    """
    made: list[str] = []

    def make(*attributes: str) -> URL:
        # Names that have to be quoted wherever they are written.
        name = f"{scratch.PREFIX}Plain-{secrets.token_hex(4)}"
        with scratch.maintenance(cluster.url) as connection:
            connection.exec_driver_sql(
                f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret' {' '.join(attributes)}"
            )
        made.append(name)
        return cluster.url.set(username=name, password="secret")

    yield make
    forget_roles(cluster)
    with scratch.maintenance(cluster.url) as connection:
        for login in made:
            connection.exec_driver_sql(f'DROP ROLE "{login}"')


def forget_roles(cluster: scratch.Server) -> None:
    """Leaves a cluster without our databases as one that has never seen us."""
    with scratch.maintenance(cluster.url) as connection:
        ours = connection.scalars(
            text("SELECT rolname FROM pg_catalog.pg_roles WHERE rolname ^@ 'symphony_'")
        )
        for role in ours:
            connection.exec_driver_sql(f'DROP ROLE "{role}"')


def picture(url: URL) -> dict[str, str]:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        return schema.read(connection)
