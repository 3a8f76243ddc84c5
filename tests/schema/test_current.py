"""schema/current is the truth: a changed object shows, whatever `alembic check` says."""

import pytest
from alembic import command
from sqlalchemy import create_engine, pool
from tests.support import Connect
from tools import scratch

from orchestration import schema

CHANGES = {
    "functions/refuse_change": """
        CREATE OR REPLACE FUNCTION orchestration.refuse_change() RETURNS trigger
        LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'
    """,
    "triggers/policy_versions__guard": (
        "ALTER TABLE orchestration.policy_versions ENABLE TRIGGER guard"
    ),
    "triggers/policy_versions__no_delete": (
        "DROP TRIGGER no_delete ON orchestration.policy_versions"
    ),
    "constraints/ck_policy_versions_times": (
        "ALTER TABLE orchestration.policy_versions DROP CONSTRAINT ck_policy_versions_times"
    ),
    "indexes/uq_policy_versions_grace": "DROP INDEX orchestration.uq_policy_versions_grace",
    "grants/policy_versions": ("GRANT INSERT ON orchestration.policy_versions TO symphony_ingest"),
    "grants/policy_versions__status": (
        "GRANT UPDATE (status) ON orchestration.policy_versions TO symphony_ingest"
    ),
    "grants/raise_invariant": ("GRANT EXECUTE ON FUNCTION orchestration.raise_invariant TO PUBLIC"),
    "rules/policy_versions__swallow": (
        "CREATE RULE swallow AS ON INSERT TO orchestration.policy_versions DO INSTEAD NOTHING"
    ),
    "views/accepted_policy_versions": (
        "ALTER VIEW orchestration.accepted_policy_versions RESET (security_invoker)"
    ),
    "tables/policy_versions": "ALTER TABLE orchestration.policy_versions SET UNLOGGED",
}


def differences(database: scratch.Database) -> list[str]:
    with create_engine(database.url, poolclass=pool.NullPool).connect() as connection:
        return [
            difference.path
            for difference in schema.compare(schema.expected(), schema.read(connection))
        ]


def test_a_migrated_database_is_as_current_says(database: scratch.Database) -> None:
    assert differences(database) == []


@pytest.mark.parametrize("path", CHANGES)
def test_a_changed_object_is_found(database: scratch.Database, owner: Connect, path: str) -> None:
    owner.execute(CHANGES[path])
    assert differences(database) == [path]


def test_the_models_match_the_migrations(database: scratch.Database) -> None:
    command.check(scratch.alembic_config(database.url))
