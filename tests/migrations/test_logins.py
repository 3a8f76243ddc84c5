"""What the upgrading login needs: every refusal is one sentence, and who obeys it gets there."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from tools import scratch

from orchestration import schema
from tests.migrations.conftest import picture
from tests.migrations.operator import alembic, failures, on_the_page, script, statements
from tests.migrations.test_elsewhere import HOST_ENV
from tests.support import Refusal, connect

# The logins go after the databases.
pytestmark = [pytest.mark.own_cluster, pytest.mark.usefixtures("plain_login")]

Upgrade = Callable[[URL], str | None]
OneWay = Callable[[Path, URL], str | None]
MakeLogin = Callable[..., URL]


def ours(_folder: Path, url: URL) -> str | None:
    try:
        scratch.upgrade(url)
    except CommandError as error:
        return str(error)
    return None


def a_hosts(folder: Path, url: URL) -> str | None:
    (folder / "env.py").write_text(HOST_ENV, "utf-8")
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", str(scratch.ROOT / "alembic" / "versions"))
    config.set_main_option("path_separator", "newline")
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        return Refusal.of(cast(psycopg.Error, error.orig)).message
    return None


def by_script(_folder: Path, url: URL) -> str | None:
    with connect(url) as connection:
        try:
            connection.execute(statements(script("upgrade", "base:head")))
        except psycopg.Error as error:
            return Refusal.of(error).message
    return None


@pytest.fixture(params=[ours, a_hosts, by_script], ids=["ours", "a host's", "a script"])
def refusal(request: pytest.FixtureRequest, tmp_path: Path) -> Upgrade:
    """Upgrades by one of three ways: the sentence that refuses it, None where nothing does."""

    def upgrade(url: URL) -> str | None:
        told = request.param(tmp_path, url)
        assert told is None or "\n" not in told
        return told

    return upgrade


def may_use(login: URL, database: URL, *, create: bool = True) -> URL:
    """The database as the login sees it, which may make a host's version table in public."""
    with scratch.maintenance(database) as connection:
        connection.exec_driver_sql(f'GRANT CREATE ON SCHEMA public TO "{login.username}"')
        if create:
            connection.exec_driver_sql(
                f'GRANT CREATE ON DATABASE {database.database} TO "{login.username}"'
            )
    return login.set(database=database.database)


def obey(database: URL, told: str | None) -> None:
    """Run what the sentence says, as a superuser."""
    assert told is not None
    with scratch.maintenance(database) as connection:
        connection.exec_driver_sql(told.rpartition(": ")[2])


def test_a_login_that_obeys_each_refusal_upgrades(
    empty: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    login = may_use(plain_login(), empty, create=False)
    names = {"migrator": f'"{login.username}"', "payments": str(login.database)}
    for needed in ("CREATEROLE", "CREATE on the database"):
        told = refusal(login)
        assert told is not None
        assert needed in told
        assert on_the_page(told, **names)
        obey(empty, told)
    assert refusal(login) is None
    assert picture(empty) == schema.expected()


def test_a_refused_upgrade_leaves_nothing(
    cluster: scratch.Server, empty: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    assert refusal(may_use(plain_login("CREATEROLE"), empty, create=False)) is not None
    with scratch.maintenance(cluster.url) as connection:
        found = "SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname ^@ 'symphony_'"
        assert connection.exec_driver_sql(found).scalar() == 0


def test_roles_that_another_login_made_are_granted_by_who_has_admin_on_them(
    cluster: scratch.Server, empty: URL, other: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    first = may_use(plain_login("CREATEROLE"), empty)
    second = may_use(plain_login("CREATEROLE"), other)
    assert refusal(first) is None
    told = refusal(second)
    if cluster.major >= 16:
        assert told is not None
        assert on_the_page(told, other=f'"{second.username}"')
        # Not a superuser's favour: who made the role may do it.
        with connect(first) as connection:
            connection.execute(told.rpartition(": ")[2])
        told = refusal(second)
    # Before 16 CREATEROLE is enough for every role that is no superuser.
    assert told is None
    assert picture(other) == picture(empty) == schema.expected()


def test_one_login_upgrades_two_databases(
    empty: URL, other: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    login = plain_login("CREATEROLE")
    assert refusal(may_use(login, empty)) is None
    assert refusal(may_use(login, other)) is None
    assert picture(other) == picture(empty) == schema.expected()


def test_a_member_of_the_owner_role_needs_no_createrole_where_the_roles_exist(
    empty: URL, other: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    scratch.upgrade(other)
    login = plain_login("IN ROLE symphony_owner")
    assert refusal(may_use(login, empty)) is None
    assert picture(empty) == schema.expected()


@pytest.mark.parametrize(
    ("role", "attribute"),
    [
        ("symphony_owner", "SUPERUSER"),
        ("symphony_ingest", "LOGIN"),
        ("symphony_executor", "BYPASSRLS"),
        ("symphony_control", "CREATEROLE"),
        ("symphony_readonly", "CREATEDB"),
        ("symphony_auditor", "REPLICATION"),
        ("symphony_ingest", "NOINHERIT"),
        ("symphony_auditor", "IN ROLE pg_monitor"),
    ],
)
def test_a_role_that_exists_already_is_taken_over_only_as_ours_are(
    empty: URL, refusal: Upgrade, role: str, attribute: str
) -> None:
    with scratch.maintenance(empty) as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} {attribute}")

    told = refusal(empty)

    assert told is not None
    assert on_the_page(told, symphony_ingest=role)
    obey(empty, told)
    assert refusal(empty) is None
    assert picture(empty) == schema.expected()


PLANTED = """
CREATE FUNCTION public.planted(varchar, varchar) RETURNS boolean
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''planted''; END';
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.planted)
"""


@pytest.mark.parametrize("upgrade", [ours, by_script], ids=["ours", "a script"])
def test_what_anybody_put_into_public_is_not_called(empty: URL, upgrade: OneWay) -> None:
    with scratch.maintenance(empty) as connection:
        connection.exec_driver_sql(PLANTED)
    assert upgrade(Path(), empty) is None
    assert picture(empty) == schema.expected()


@pytest.mark.parametrize("upgrade", [ours, by_script], ids=["ours", "a script"])
def test_default_privileges_of_the_login_open_nothing(
    empty: URL, plain_login: MakeLogin, upgrade: OneWay
) -> None:
    login = may_use(plain_login("CREATEROLE"), empty)
    with connect(login) as connection:
        connection.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    assert upgrade(Path(), login) is None
    assert picture(empty) == schema.expected()


@pytest.mark.parametrize("by", ["a superuser", "a plain login"])
def test_a_schema_of_somebody_else_is_refused(
    empty: URL, plain_login: MakeLogin, refusal: Upgrade, by: str
) -> None:
    somebody = plain_login()
    with scratch.maintenance(empty) as connection:
        connection.exec_driver_sql(
            f'CREATE SCHEMA orchestration AUTHORIZATION "{somebody.username}"'
        )
    upgrader = empty if by == "a superuser" else may_use(plain_login("CREATEROLE"), empty)

    told = refusal(upgrader)

    assert told is not None
    assert on_the_page(told, somebody=f'"{somebody.username}"')
    with scratch.maintenance(empty) as connection:
        connection.exec_driver_sql("DROP SCHEMA orchestration")
    assert refusal(upgrader) is None
    assert picture(empty) == schema.expected()


def test_a_login_that_inherits_nothing_upgrades_or_is_told_so(
    cluster: scratch.Server, empty: URL, plain_login: MakeLogin
) -> None:
    login = may_use(plain_login("CREATEROLE NOINHERIT"), empty)
    told = ours(Path(), login)
    if cluster.major < 16:
        # Only a membership of 16 and later says for itself that it is inherited.
        assert told is not None
        assert on_the_page(told, migrator=f'"{login.username}"')
        obey(empty, told)
        told = ours(Path(), login)
    assert told is None
    assert picture(empty) == schema.expected()
    scratch.downgrade(login, "base")


def test_a_login_whose_own_grants_are_not_inherited_upgrades(
    cluster: scratch.Server, empty: URL, plain_login: MakeLogin, refusal: Upgrade
) -> None:
    login = may_use(plain_login("CREATEROLE"), empty)
    if cluster.major >= 16:
        with scratch.maintenance(empty) as connection:
            connection.exec_driver_sql(
                f"ALTER ROLE \"{login.username}\" SET createrole_self_grant = 'set'"
            )
    assert refusal(login) is None
    assert picture(empty) == schema.expected()


def test_a_colleague_goes_on_where_another_login_stopped(
    empty: URL, plain_login: MakeLogin
) -> None:
    scratch.upgrade(may_use(plain_login("CREATEROLE"), empty), "0001")
    colleague = may_use(plain_login("IN ROLE symphony_owner"), empty)
    scratch.upgrade(colleague)
    assert picture(empty) == schema.expected()


def test_who_may_not_drop_the_roles_goes_down_and_leaves_them(
    cluster: scratch.Server, empty: URL, plain_login: MakeLogin
) -> None:
    scratch.upgrade(may_use(plain_login("CREATEROLE"), empty))
    colleague = may_use(plain_login("IN ROLE symphony_owner"), empty)
    scratch.downgrade(colleague, "base")
    with scratch.maintenance(cluster.url) as connection:
        found = "SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname ^@ 'symphony_'"
        assert connection.exec_driver_sql(found).scalar() == 6
    scratch.upgrade(colleague)
    assert picture(empty) == schema.expected()


def test_one_login_upgrades_eight_databases_of_a_new_cluster_at_once(
    eight: list[URL], plain_login: MakeLogin
) -> None:
    login = plain_login("CREATEROLE")
    urls = [may_use(login, database) for database in eight]
    assert failures([alembic("upgrade", "head", database_url=url) for url in urls]) == []
    for database in eight:
        assert picture(database) == schema.expected()
