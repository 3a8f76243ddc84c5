"""A server to work on and databases of our own there: for the tests, the demo and the benchmarks.

The server is the one that DATABASE_URL names, else a container where Docker answers, else the
embedded one. Everything carries the prefix `orchestration_scratch_` there, and is dropped again.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, create_engine, make_url, pool, text

from orchestration import embedded

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "orchestration_scratch_"
RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")


class ScratchRefused(RuntimeError):
    """The server gives us no right to make databases and logins of our own."""


@dataclass(frozen=True)
class Server:
    url: URL
    kind: str
    version: str
    superuser: bool


@dataclass(frozen=True)
class Database:
    """A database of our own, and how to reach it as its owner's login or as one of the roles."""

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
    """The server to work on. `settings` reach the embedded one only.

    Raises ScratchRefused, in one sentence, where DATABASE_URL's login may not make databases and
    roles.
    """
    if named := os.environ.get("DATABASE_URL"):
        yield describe(make_url(named), "DATABASE_URL")
    elif docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer("postgres:18", driver="psycopg") as container:
            yield describe(make_url(container.get_connection_url()), "container")
    else:
        with embedded.serve(settings=settings) as running:
            yield describe(make_url(running.url), "embedded")


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


def describe(url: URL, kind: str) -> Server:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    with maintenance(url) as connection:
        row = connection.execute(
            text(
                "SELECT current_setting('server_version') AS version, rolsuper, rolcreatedb,"
                " rolcreaterole FROM pg_roles WHERE rolname = current_user"
            )
        ).one()
    if not (row.rolsuper or (row.rolcreatedb and row.rolcreaterole)):
        raise ScratchRefused(
            f"DATABASE_URL's login {url.username} may not make databases and roles here: give it "
            "CREATEDB and CREATEROLE, or unset DATABASE_URL to use the embedded server"
        )
    return Server(url, kind, row.version, row.rolsuper)


@contextmanager
def maintenance(url: URL) -> Iterator[Connection]:
    """A connection outside transactions, for CREATE and DROP DATABASE."""
    engine = create_engine(url, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def create_database(at: Server, name: str, template: str | None = None) -> URL:
    # Copying the files of a small template takes half the time of logging its pages.
    clause = f' TEMPLATE "{template}" STRATEGY file_copy' if template else ""
    with maintenance(at.url) as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"{clause}')
    return at.url.set(database=name)


def drop_database(at: Server, name: str) -> None:
    with maintenance(at.url) as connection:
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def logins(at: Server) -> Iterator[dict[str, URL]]:
    """One login a runtime role, a member of it and of nothing else; dropped afterwards."""
    token = secrets.token_hex(4)
    password = secrets.token_urlsafe(16)
    names = {role: f"{PREFIX}{token}_{role}" for role in RUNTIME_ROLES}
    made: list[str] = []
    try:
        with maintenance(at.url) as connection:
            for role, login in names.items():
                connection.exec_driver_sql(
                    f"CREATE ROLE \"{login}\" LOGIN PASSWORD '{password}' IN ROLE symphony_{role}"
                )
                made.append(login)
        yield {role: at.url.set(username=name, password=password) for role, name in names.items()}
    finally:
        with maintenance(at.url) as connection:
            for login in made:
                connection.exec_driver_sql(f'DROP ROLE "{login}"')


@contextmanager
def database(at: Server, revision: str = "head") -> Iterator[Database]:
    """A migrated database with its logins; both are dropped afterwards."""
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
