"""A cluster for tests that make and drop roles, and how to look at what a revision leaves."""

import secrets
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, create_engine, pool
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


def picture(url: URL) -> dict[str, str]:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        return schema.read(connection)
