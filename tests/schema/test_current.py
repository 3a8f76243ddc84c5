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
    "views/kill_switch_state": """
        DO $$ BEGIN
          EXECUTE 'CREATE OR REPLACE VIEW orchestration.kill_switch_state'
            ' WITH (security_barrier = true) AS' || replace(
              pg_get_viewdef('orchestration.kill_switch_state'::regclass), 'DESC', 'ASC');
        END $$
    """,
    "tables/policy_versions": "ALTER TABLE orchestration.policy_versions SET UNLOGGED",
    "tables/revoked_tokens": (
        "ALTER TABLE orchestration.revoked_tokens ALTER COLUMN revoked_by DROP NOT NULL"
    ),
    "grants/kill_switches": "REVOKE SELECT ON orchestration.kill_switches FROM symphony_auditor",
}

A_VIEW = """
CREATE VIEW orchestration.odd AS
SELECT k.scope, 'k.scope' AS words
FROM orchestration.kill_switches AS k
WHERE k.scope <> '''k.action' AND EXISTS (
  SELECT FROM orchestration.policy_versions AS p WHERE p.id = k.target AND p.status = k.action
)
"""
ON_EVERY_VERSION = """
CREATE VIEW orchestration.odd AS
 SELECT scope,
    'k.scope'::text AS words
   FROM orchestration.kill_switches k
  WHERE ((scope <> '''k.action'::text) AND (EXISTS ( SELECT
           FROM orchestration.policy_versions p
          WHERE ((p.id = target) AND (p.status = action)))));
-- owner: symphony_owner
"""


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


def test_a_view_reads_alike_on_every_version(database: scratch.Database, owner: Connect) -> None:
    owner.execute(A_VIEW)
    with create_engine(database.url, poolclass=pool.NullPool).connect() as connection:
        assert schema.read(connection)["views/odd"] == ON_EVERY_VERSION.strip()


def test_a_not_null_that_is_not_validated_is_found(
    database: scratch.Database, owner: Connect
) -> None:
    if owner.info.server_version < 180000:
        pytest.skip("before 18 every NOT NULL is validated")
    column = "ALTER TABLE orchestration.revoked_tokens ALTER COLUMN revoked_by"
    owner.execute(f"{column} DROP NOT NULL")
    owner.execute(
        "ALTER TABLE orchestration.revoked_tokens"
        " ADD CONSTRAINT later NOT NULL revoked_by NOT VALID"
    )
    assert differences(database) == ["constraints/later"]


def test_the_models_match_the_migrations(database: scratch.Database) -> None:
    command.check(scratch.alembic_config(database.url))
