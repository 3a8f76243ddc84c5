"""A server that cannot be worked on: the demo and the tests say so in one sentence."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import scratch

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "demo": ("-m", "examples.demo"),
    "pytest": ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_errors.py"),
}
FORM = "postgresql+psycopg://user:password@host:port/database"
URLS = {
    "secret": FORM,
    "mysql://u:secret@h/d": FORM,
    "sqlite:///secret.db": FORM,
    "postgres://u:secret@127.0.0.1:1/d": "server cannot be reached",
}

pytestmark = pytest.mark.own_cluster
each_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[scratch.Server]:
    """A server where somebody else has migrated a database already."""
    with scratch.own_server({"fsync": "off"}) as at:
        scratch.upgrade(scratch.create_database(at, "theirs"))
        yield at


@pytest.fixture
def newcomer(cluster: scratch.Server) -> Iterator[URL]:
    """A login that may make databases and roles, and has no right on the roles that are there."""
    name, password = f"{scratch.PREFIX}{secrets.token_hex(4)}", secrets.token_hex(8)
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(
            f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD '{password}'"
        )
    yield cluster.url.set(username=name, password=password)
    with scratch.maintenance(cluster.url) as connection:
        # What it granted to others as an administrator of our roles goes with it.
        connection.exec_driver_sql(f"DROP OWNED BY {name} CASCADE")
        connection.exec_driver_sql(f"DROP ROLE {name}")


def said(name: str, url: str, **environment: str) -> tuple[int, str]:
    """The exit code, and what was said on one line."""
    ran = subprocess.run(
        [sys.executable, *COMMANDS[name]],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url, "PYTEST_ADDOPTS": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.returncode, " ".join((ran.stdout + ran.stderr).split())


@each_command
@pytest.mark.parametrize("url", URLS)
def test_a_url_that_leads_nowhere_is_told_in_one_sentence(name: str, url: str) -> None:
    code, words = said(name, url)
    assert code not in (0, 3), "3 is pytest's INTERNALERROR"
    assert URLS[url] in words
    assert "Traceback" not in words
    assert "secret" not in words
    assert not (ROOT / "secret.db").exists()


@each_command
def test_an_image_without_an_engine_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path / 'socket'}"
    code, words = said(name, "", POSTGRES_BIN="", POSTGRES_IMAGE="postgres:18", DOCKER_HOST=nowhere)
    assert code not in (0, 3)
    assert "No container of postgres:18 can be started: " in words
    assert "Traceback" not in words


@each_command
def test_roles_of_another_s_are_named_with_the_grant_that_is_missing(
    cluster: scratch.Server, newcomer: URL, name: str
) -> None:
    url = newcomer.render_as_string(hide_password=False)
    code, words = said(name, url)
    if cluster.major < 16:
        # There CREATEROLE alone grants every role.
        assert code == 0, words
        return
    assert code not in (0, 3)
    assert "Traceback" not in words
    assert "PASSWORD" not in words
    start = words.index("GRANT ")
    grant = words[start : words.index("WITH ADMIN OPTION") + len("WITH ADMIN OPTION")]
    assert grant == (
        "GRANT symphony_owner, symphony_ingest, symphony_executor, symphony_control,"
        f" symphony_readonly, symphony_auditor TO {newcomer.username} WITH ADMIN OPTION"
    )
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(grant)
    code, words = said(name, url)
    assert code == 0, words


def test_a_login_that_cannot_be_made_is_told_without_its_password(
    server: scratch.Server,
) -> None:
    with scratch.maintenance(server.url) as connection:
        with pytest.raises(scratch.ScratchRefused) as refused:
            scratch.create_login(connection, f"{scratch.PREFIX}nobody", "secret", "pg_nothing")
        assert refused.value.__suppress_context__
    assert str(refused.value).splitlines()[0] == (
        'Cannot create a login in the role pg_nothing: role "pg_nothing" does not exist'
    )
