"""Each revision goes up, down with what was recorded, and up again, and leaves what it should."""

import secrets

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, create_engine, pool, text
from tools import scratch

from orchestration import schema
from tests.migrations import evidence
from tests.migrations.conftest import picture
from tests.support import connect

pytestmark = pytest.mark.own_cluster

SCRIPTS = ScriptDirectory(str(scratch.ROOT / "alembic"))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
BEFORE = dict(zip(REVISIONS, ["base", *REVISIONS], strict=False))
RUNTIME_GROUPS = {f"symphony_{role}" for role in scratch.RUNTIME_ROLES}


def recorded_revision(url: URL) -> str | None:
    """What services read; None where there is no schema to be at a revision."""
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        if not connection.scalar(text("SELECT to_regclass('orchestration.schema_revision')")):
            return None
        found = connection.scalar(text("SELECT revision FROM orchestration.schema_revision"))
        return str(found)


def fill(url: URL, revision: str) -> None:
    with connect(url) as connection:
        evidence.fill(connection, revision)


def roles(cluster: scratch.Server) -> set[str]:
    with scratch.maintenance(cluster.url) as connection:
        found = connection.scalars(
            text("SELECT rolname FROM pg_catalog.pg_roles WHERE rolname ^@ 'symphony_'")
        )
        return set(found)


def test_there_is_one_head_and_it_carries_the_branch_label() -> None:
    assert SCRIPTS.get_heads() == [schema.REVISION], "REVISION in orchestration/schema/__init__.py"
    assert SCRIPTS.get_revision("orchestration@head").revision == schema.REVISION
    assert SCRIPTS.get_bases() == [REVISIONS[0]]


def test_revisions_compare_as_text_in_the_order_of_the_chain() -> None:
    assert sorted(REVISIONS) == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS)
def test_up_down_up_leaves_what_a_straight_upgrade_makes(
    empty: URL, other: URL, revision: str
) -> None:
    scratch.upgrade(other, revision)
    scratch.upgrade(empty, revision)
    fill(empty, revision)
    scratch.downgrade(empty, BEFORE[revision], destroy_evidence=True)
    scratch.upgrade(empty, revision)
    assert picture(empty) == picture(other)


@pytest.mark.parametrize("revision", REVISIONS)
def test_all_the_way_down_with_evidence_and_up_again(empty: URL, other: URL, revision: str) -> None:
    scratch.upgrade(other, revision)
    scratch.upgrade(empty, revision)
    fill(empty, revision)
    scratch.downgrade(empty, "base", destroy_evidence=True)
    scratch.upgrade(empty, revision)
    assert picture(empty) == picture(other)
    fill(empty, revision)


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_schema_tells_its_revision_after_an_upgrade_and_after_a_downgrade(
    empty: URL, revision: str
) -> None:
    scratch.upgrade(empty, revision)
    assert recorded_revision(empty) == revision
    scratch.downgrade(empty, BEFORE[revision])
    assert recorded_revision(empty) == (None if BEFORE[revision] == "base" else BEFORE[revision])


@pytest.mark.parametrize("revision", evidence.WRITTEN_BY)
def test_a_downgrade_that_would_destroy_evidence_is_refused_in_one_sentence(
    empty: URL, revision: str
) -> None:
    scratch.upgrade(empty, revision)
    fill(empty, revision)
    before = picture(empty)

    with pytest.raises(CommandError) as refused:
        scratch.downgrade(empty, BEFORE[revision])

    assert "-x destroy-evidence=yes" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert picture(empty) == before
    assert recorded_revision(empty) == revision

    scratch.downgrade(empty, BEFORE[revision], destroy_evidence=True)
    assert recorded_revision(empty) == BEFORE[revision]


def test_every_revision_that_keeps_evidence_is_among_those_that_are_filled() -> None:
    refusing = {
        script.revision
        for script in SCRIPTS.walk_revisions()
        if "destroy-evidence" in script.module.__loader__.get_data(script.path).decode()
    }
    assert refusing == evidence.WRITTEN_BY.keys()


def test_downgrade_base_leaves_schema_version_table_and_owner_and_nothing_else(
    cluster: scratch.Server, empty: URL
) -> None:
    scratch.upgrade(empty)
    fill(empty, schema.REVISION)
    scratch.downgrade(empty, "base", destroy_evidence=True)

    with connect(empty) as connection:
        left = connection.execute(
            """
            SELECT 'schema', nspname::text, nspowner::regrole::text
            FROM pg_catalog.pg_namespace WHERE nspname = 'orchestration'
            UNION ALL
            SELECT 'relation', relname, relowner::regrole::text
            FROM pg_catalog.pg_class
            WHERE relnamespace = 'orchestration'::regnamespace AND relkind <> 'i'
            UNION ALL
            SELECT 'function', proname, proowner::regrole::text
            FROM pg_catalog.pg_proc WHERE pronamespace = 'orchestration'::regnamespace
            """
        ).fetchall()
        revisions = connection.execute("SELECT * FROM orchestration.alembic_version").fetchall()
    assert sorted(left) == [
        ("relation", "alembic_version", "symphony_owner"),
        ("schema", "orchestration", "symphony_owner"),
    ]
    assert revisions == []
    assert roles(cluster) == {"symphony_owner"}


def test_runtime_roles_that_another_database_uses_stay(
    cluster: scratch.Server, empty: URL, other: URL
) -> None:
    scratch.upgrade(other)
    scratch.upgrade(empty)
    before = picture(other)

    scratch.downgrade(empty, "base")
    assert roles(cluster) == {"symphony_owner", *RUNTIME_GROUPS}
    assert picture(other) == before

    scratch.downgrade(other, "base")
    assert roles(cluster) == {"symphony_owner"}


def test_a_runtime_role_with_a_member_stays_and_keeps_it(
    cluster: scratch.Server, empty: URL
) -> None:
    scratch.upgrade(empty)
    login = scratch.PREFIX + secrets.token_hex(4)
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{login}" LOGIN IN ROLE symphony_control')
        try:
            scratch.downgrade(empty, "base")
            assert roles(cluster) == {"symphony_owner", "symphony_control"}
            assert connection.scalar(
                text("SELECT pg_has_role(:login, 'symphony_control', 'MEMBER')"), {"login": login}
            )
        finally:
            connection.exec_driver_sql(f'DROP ROLE "{login}"')
            connection.exec_driver_sql("DROP ROLE symphony_control")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_in_one_sentence(
    cluster: scratch.Server, encoding: str
) -> None:
    name = scratch.PREFIX + secrets.token_hex(8)
    with scratch.maintenance(cluster.url) as connection:
        connection.exec_driver_sql(
            f"CREATE DATABASE \"{name}\" ENCODING '{encoding}' TEMPLATE template0"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
    try:
        with pytest.raises(CommandError, match="must be encoded in UTF8"):
            scratch.upgrade(cluster.url.set(database=name))
    finally:
        scratch.drop_database(cluster, name)
