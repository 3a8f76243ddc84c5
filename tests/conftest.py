"""The fixtures: one server per run, one migrated template, and a clone of it per test."""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import URL, Engine, make_url, pool
from sqlalchemy.orm import Session, sessionmaker
from tools import pooler, scratch

from orchestration import database as engines
from orchestration.testing.embedded import EmbeddedServerError
from tests.support import (
    INSTRUCTIONS_EACH,
    PARTICIPANTS,
    POOLED,
    Connect,
    authorize_instructions,
    connect,
    instruction_id,
    picture,
)

SERVER_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "track_commit_timestamp": "on",
}

STATEMENT_TIMEOUT = "60s"
"""A statement that waits for a lock longer than this fails, so that no test waits forever."""

MEMORY = Path("/dev/shm")
NEEDED_OCTETS = 4 * 2**30

_server = pytest.StashKey[dict[str, Any]]()
_resources = pytest.StashKey[ExitStack]()


def live_in_memory() -> None:
    """Put temporary files into memory if there is room, unless TMPDIR is set. Each database
    consists of hundreds of files, which are created and removed for a test."""
    try:
        facts = os.statvfs(MEMORY)
    except OSError:
        return
    room = facts.f_bavail * facts.f_frsize
    if "TMPDIR" not in os.environ and room >= NEEDED_OCTETS and not facts.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None


def pytest_configure(config: pytest.Config) -> None:
    """Start the server and migrate the template, in the controller or the only process."""
    if hasattr(config, "workerinput"):
        config.stash[_server] = config.workerinput["server"]
        return
    if config.option.collectonly or config.option.help:
        return
    resources = config.stash[_resources] = ExitStack()
    live_in_memory()
    try:
        at = resources.enter_context(scratch.server(SERVER_SETTINGS))
        template = scratch.PREFIX + secrets.token_hex(4)
        url = scratch.create_database(at, template)
        resources.callback(scratch.drop_database, at, template)
        scratch.upgrade(url)
        instructed = template + "_instructed"
        filled = scratch.create_database(at, instructed, template=template)
        resources.callback(scratch.drop_database, at, instructed)
        with connect(filled) as connection:
            connection.execute("SET ROLE symphony_owner")
            authorize_instructions(
                connection,
                [
                    (instruction_id(participant_id, number), participant_id)
                    for participant_id in PARTICIPANTS
                    for number in range(INSTRUCTIONS_EACH)
                ],
            )
        logins = resources.enter_context(scratch.logins(at))
        pooled = None
        if POOLED:
            pooled = resources.enter_context(pooler.pgbouncer([at.url, *logins.values()]))
    except (scratch.ScratchRefused, EmbeddedServerError, CommandError) as error:
        resources.close()
        raise pytest.UsageError(str(error)) from error
    except BaseException:
        resources.close()
        raise
    config.stash[_server] = {
        "url": at.url.render_as_string(hide_password=False),
        "kind": at.kind,
        "version": at.version,
        "superuser": at.superuser,
        "template": template,
        "instructed": instructed,
        "pooler": None if pooled is None else pooled.render_as_string(hide_password=False),
        "logins": {
            role: login.render_as_string(hide_password=False) for role, login in logins.items()
        },
    }


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["server"] = node.config.stash[_server]


def pytest_unconfigure(config: pytest.Config) -> None:
    if _resources in config.stash:
        config.stash[_resources].close()


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash.get(_server, None)
    if server is None:
        return "server: none"
    through = ", through PgBouncer" if server["pooler"] else ""
    return f"server: PostgreSQL {server['version']} ({server['kind']}{through})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = "direct" if POOLED else "pooled"
    config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker(other)])
    items[:] = [item for item in items if not item.get_closest_marker(other)]
    server = config.stash.get(_server, None)
    if server is None or server["superuser"]:
        return
    for item in items:
        if item.get_closest_marker("superuser"):
            item.add_marker(pytest.mark.skip("not run: DATABASE_URL's login is no superuser"))


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> scratch.Server:
    known = pytestconfig.stash[_server]
    return scratch.Server(
        make_url(known["url"]), known["kind"], known["version"], known["superuser"]
    )


class Clones:
    """Create copies of the migrated template and drop them, over one connection per process."""

    def __init__(self, server: scratch.Server, known: dict[str, Any]) -> None:
        self._server, self._known = server, known
        self._reached = make_url(known["pooler"] or known["url"])
        self._connection: Connect | None = None

    def _execute(self, statement: str, *names: str) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._server.url)
        self._connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _through(self, login: URL) -> URL:
        return login.set(host=self._reached.host, port=self._reached.port)

    def directly(self, login: URL) -> URL:
        """The way to the server that avoids the pooler, because what a session sets must last."""
        return login.set(host=self._server.url.host, port=self._server.url.port)

    @contextmanager
    def one(self, template: str = "template") -> Iterator[scratch.Database]:
        name = scratch.PREFIX + secrets.token_hex(8)
        self._execute(
            "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, self._known[template]
        )
        try:
            yield scratch.Database(
                self._through(self._server.url.set(database=name)),
                {role: self._through(make_url(at)) for role, at in self._known["logins"].items()},
            )
        finally:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@pytest.fixture(scope="session")
def clones(server: scratch.Server, pytestconfig: pytest.Config) -> Iterator[Clones]:
    with closing(Clones(server, pytestconfig.stash[_server])) as made:
        yield made


class Shared:
    """The databases that a module's tests share, by template and history."""

    def __init__(self, clones: Clones, made: ExitStack) -> None:
        self._clones, self._made = clones, made
        self._known: dict[Any, tuple[scratch.Database, Connect, str]] = {}

    @contextmanager
    def unchanged(
        self, template: str, history: Callable[[Connect], object] | None
    ) -> Iterator[scratch.Database]:
        key = template, history
        if key not in self._known:
            database = self._made.enter_context(self._clones.one(template))
            observer = self._made.enter_context(connect(self._clones.directly(database.url)))
            observer.execute("SET ROLE symphony_owner")
            if history is not None:
                history(observer)
            self._known[key] = database, observer, picture(observer)
        database, observer, before = self._known[key]
        yield database
        if picture(observer) != before:
            del self._known[key]
            pytest.fail("the test changed the database that it shares: don't mark it `unchanged`")


@pytest.fixture(scope="module")
def shared(clones: Clones) -> Iterator[Shared]:
    with ExitStack() as made:
        yield Shared(clones, made)


@pytest.fixture
def database(
    clones: Clones, shared: Shared, request: pytest.FixtureRequest
) -> Iterator[scratch.Database]:
    """A migrated database for this test alone. Tests of one module that are marked `unchanged` with
    the same history share one. A test that is marked `instructed` gets one with instructions."""
    template = "instructed" if request.node.get_closest_marker("instructed") else "template"
    unchanged = request.node.get_closest_marker("unchanged")
    if unchanged is None:
        made = clones.one(template)
    else:
        made = shared.unchanged(template, unchanged.kwargs.get("after"))
    with made as found:
        yield found


@pytest.fixture
def connections(server: scratch.Server) -> Iterator[Callable[[URL], Connect]]:
    """Open driver connections in autocommit mode, and close them all at the end.

    They connect to the server directly, because session settings must last.
    """
    with ExitStack() as opened:

        def open_one(url: URL) -> Connect:
            at = url.set(host=server.url.host, port=server.url.port) if POOLED else url
            connection = opened.enter_context(connect(at))
            connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
            return connection

        yield open_one


@pytest.fixture
def superuser(
    database: scratch.Database, connections: Callable[[URL], Connect]
) -> psycopg.Connection[Any]:
    """A connection of the login that created the database."""
    return connections(database.url)


@pytest.fixture
def owner(
    database: scratch.Database, connections: Callable[[URL], Connect]
) -> psycopg.Connection[Any]:
    """A connection with the privileges of symphony_owner, so that only triggers and constraints
    reject."""
    connection = connections(database.url)
    connection.execute("SET ROLE symphony_owner")
    return connection


@pytest.fixture
def login(
    database: scratch.Database, connections: Callable[[URL], Connect]
) -> Callable[[str], Connect]:
    """Log in as a member of a runtime role: `login("control")`."""
    return lambda role: connections(database.as_role(role))


@pytest.fixture
def engine(database: scratch.Database) -> Iterator[Callable[[str], Engine]]:
    """Return an engine of `orchestration.database` for the login of a runtime role."""
    made: dict[str, Engine] = {}

    def engine_of(role: str) -> Engine:
        if role not in made:
            made[role] = engines.create_engine(
                database.as_role(role), pooler=POOLED, poolclass=pool.NullPool
            )
        return made[role]

    yield engine_of
    for one in made.values():
        one.dispose()


@pytest.fixture
def session(engine: Callable[[str], Engine]) -> Iterator[Callable[[str], Session]]:
    """Return a Session of a runtime role, `session("ingest")`. It is closed at the end, never
    committed."""
    with ExitStack() as opened:

        def session_of(role: str) -> Session:
            return opened.enter_context(sessionmaker(engine(role))())

        yield session_of
