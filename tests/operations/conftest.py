"""Two clusters: one with a database full of evidence, and an empty one without our roles."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from sqlalchemy import URL
from tools import scratch

from tests.operations import support

SETTINGS = {"fsync": "off", "wal_level": "logical", "autovacuum": "off"}


@dataclass(frozen=True)
class Source:
    """A database with evidence in every table, and the logins that wrote it."""

    at: scratch.Server
    url: URL
    logins: Mapping[str, URL]


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with scratch.own_server(SETTINGS) as at:
        url = scratch.create_database(at, scratch.PREFIX + "source")
        scratch.upgrade(url)
        with scratch.logins(at) as logins:
            support.fill(url, logins)
            assert support.differences(url) == []
            assert support.findings(url) == []
            yield Source(at, url, logins)


@pytest.fixture
def elsewhere() -> Iterator[scratch.Server]:
    """Another cluster, without our roles."""
    with scratch.own_server(SETTINGS) as at:
        yield at


@pytest.fixture
def empty() -> Iterator[Callable[[scratch.Server], URL]]:
    """Create empty databases on a server, and drop them at the end."""
    with ExitStack() as made:

        def make(at: scratch.Server) -> URL:
            name = scratch.PREFIX + secrets.token_hex(8)
            url = scratch.create_database(at, name, template="template0")
            made.callback(scratch.drop_database, at, name)
            return url

        yield make
