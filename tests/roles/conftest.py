"""Share one migrated database per module among the tests that change nothing in it."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import make_url
from tools import scratch

from tests.conftest import _server
from tests.roles.matrix import NOBODY
from tests.support import Connect, connect


@pytest.fixture(scope="session")
def nobody(server: scratch.Server) -> Iterator[str]:
    """The name of a login that is a member of no role; its password equals its name."""
    name = f"{scratch.PREFIX}{secrets.token_hex(4)}_{NOBODY}"
    with scratch.maintenance(server.url) as connection:
        connection.exec_driver_sql(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{name}'")
        try:
            yield name
        finally:
            connection.exec_driver_sql(f'DROP ROLE "{name}"')


@pytest.fixture(scope="module")
def migrated(
    server: scratch.Server, nobody: str, pytestconfig: pytest.Config
) -> Iterator[scratch.Database]:
    """A migrated database for the whole module, with a login for each role and one without a
    role."""
    known = pytestconfig.stash[_server]
    name = scratch.PREFIX + secrets.token_hex(8)
    logins = {role: make_url(login) for role, login in known["logins"].items()}
    logins[NOBODY] = server.url.set(username=nobody, password=nobody)
    url = scratch.create_database(server, name, template=known["template"])
    try:
        yield scratch.Database(url, logins)
    finally:
        scratch.drop_database(server, name)


@pytest.fixture(scope="module")
def principal(migrated: scratch.Database) -> Iterator[Callable[[str], Connect]]:
    """Returns the connection of a role's login, or of the login without a role."""
    opened: dict[str, Connect] = {}
    with ExitStack() as stack:

        def connection_of(role: str) -> Connect:
            if role not in opened:
                opened[role] = stack.enter_context(connect(migrated.as_role(role)))
            return opened[role]

        yield connection_of


@pytest.fixture(scope="module")
def catalogue(migrated: scratch.Database) -> Iterator[Connect]:
    """The connection that reads the catalogue of the module's database."""
    with connect(migrated.url) as connection:
        yield connection
