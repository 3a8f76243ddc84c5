"""schema/current is the truth: a changed object shows, whatever `alembic check` says."""

from dataclasses import replace

import pytest
from alembic import command
from sqlalchemy import create_engine, pool
from tests.support import Connect, connect
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
    "functions/most": """
        CREATE AGGREGATE orchestration.most(bigint) (SFUNC = int8larger, STYPE = bigint);
        REVOKE EXECUTE ON FUNCTION orchestration.most(bigint) FROM PUBLIC
    """,
    "types/short": "CREATE DOMAIN orchestration.short AS text;"
    " REVOKE USAGE ON DOMAIN orchestration.short FROM PUBLIC",
    "types/pair": "CREATE TYPE orchestration.pair AS (first text, second text);"
    " REVOKE USAGE ON TYPE orchestration.pair FROM PUBLIC",
    "types/new_outbox_item": "ALTER TYPE orchestration.new_outbox_item"
    " ALTER ATTRIBUTE max_attempts TYPE bigint",
    "grants/new_outbox_item": "GRANT USAGE ON TYPE orchestration.new_outbox_item TO PUBLIC",
    "grants/alembic_version": "GRANT UPDATE ON orchestration.alembic_version TO symphony_readonly",
    "grants/default_privileges": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA orchestration GRANT SELECT ON TABLES TO PUBLIC"
    ),
    "grants/kill_switches": "REVOKE SELECT ON orchestration.kill_switches FROM symphony_auditor",
}

BY_SUPERUSER = {
    "operators/=(record,orchestration.policy_versions)": """
        CREATE FUNCTION public.always(record, orchestration.policy_versions) RETURNS boolean
        LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
        CREATE OPERATOR orchestration.= (
          LEFTARG = record, RIGHTARG = orchestration.policy_versions, FUNCTION = public.always
        )
    """,
    "schemas/orchestration": "ALTER SCHEMA orchestration OWNER TO CURRENT_USER",
    "tables/alembic_version": "ALTER TABLE orchestration.alembic_version OWNER TO CURRENT_USER",
    "grants/default_privileges": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA orchestration GRANT SELECT ON TABLES TO PUBLIC"
    ),
    "constraints/fk_instructions_attestation_id_policy_version_id": """
        DO $$ BEGIN
          EXECUTE (
            SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', t.tgrelid::regclass, t.tgname)
            FROM pg_trigger t
            JOIN pg_constraint c ON c.oid = t.tgconstraint
            WHERE c.conname = 'fk_instructions_attestation_id_policy_version_id'
            ORDER BY t.tgname
            LIMIT 1
          );
        END $$
    """,
    "casts/orchestration.kill_switches to text": (
        "CREATE CAST (orchestration.kill_switches AS text) WITH INOUT AS IMPLICIT"
    ),
    "settings/session_replication_role": """
        DO $$ BEGIN
          EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica',
            current_database());
        END $$
    """,
    "views/accepted_policy_versions": """
        CREATE SCHEMA policy_versions;
        CREATE FUNCTION policy_versions.clock_timestamp() RETURNS timestamptz
        LANGUAGE sql STABLE RETURN '-infinity'::timestamptz;
        DO $$ BEGIN
          EXECUTE 'CREATE OR REPLACE VIEW orchestration.accepted_policy_versions'
            ' WITH (security_invoker = true) AS' || replace(
              pg_get_viewdef('orchestration.accepted_policy_versions'::regclass),
              'clock_timestamp()', 'policy_versions.clock_timestamp()');
        END $$
    """,
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


@pytest.mark.superuser
@pytest.mark.parametrize("path", BY_SUPERUSER)
def test_what_a_superuser_changed_is_found(
    database: scratch.Database, superuser: Connect, path: str
) -> None:
    superuser.execute(BY_SUPERUSER[path])
    assert differences(database) == [path]


@pytest.mark.own_cluster
@pytest.mark.parametrize(
    "change",
    [
        "GRANT SET ON PARAMETER session_replication_role TO PUBLIC",
        "GRANT SET ON PARAMETER session_replication_role TO a_worker",
        "ALTER ROLE a_worker SET session_replication_role = replica",
        "ALTER ROLE ALL SET session_replication_role = replica",
    ],
)
def test_replica_mode_within_reach_of_a_runtime_role_is_found(change: str) -> None:
    with scratch.own_server({"fsync": "off"}) as at, scratch.database(at) as database:
        with connect(database.url) as superuser:
            superuser.execute("CREATE ROLE a_worker LOGIN IN ROLE symphony_executor")
            superuser.execute("CREATE ROLE a_stranger LOGIN")
            superuser.execute("GRANT SET ON PARAMETER session_replication_role TO a_stranger")
            assert differences(database) == []
            superuser.execute(change)
        assert differences(database) == ["settings/session_replication_role"]


@pytest.mark.parametrize(
    "setting",
    ["quote_all_identifiers=on", "bytea_output=escape", "standard_conforming_strings=off"],
)
def test_the_settings_of_a_session_are_no_difference(
    database: scratch.Database, setting: str
) -> None:
    at = database.url.update_query_dict({"options": f"-c {setting}"})
    assert differences(replace(database, url=at)) == []


def test_without_the_schema_everything_is_missing(
    superuser: Connect, server: scratch.Server
) -> None:
    with create_engine(server.url, poolclass=pool.NullPool).connect() as connection:
        found = {path for path in schema.read(connection) if not path.startswith("roles/")}
    assert found == set()


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
