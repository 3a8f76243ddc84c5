"""The models say what the migrations made. `alembic check` compares columns and indexes by name;
here the server compares what both make: constraints, indexes and storage, text by text."""

import pytest
from sqlalchemy import CheckConstraint, Table, create_engine, pool, text
from tools import scratch

from orchestration import models, schema

MIGRATED = models.Base.metadata.schema
DECLARED = "orchestration_declared"

# Under an empty search_path every name comes out qualified.
QUERIES = (
    """
    SELECT 'constraints/' || c.conrelid::regclass || '/' || c.conname,
           pg_get_constraintdef(c.oid)
    FROM pg_constraint c
    WHERE c.connamespace = CAST(:schema AS regnamespace)
      AND c.contype NOT IN ('n', 't')
    """,
    """
    SELECT 'indexes/' || c.relname, pg_get_indexdef(c.oid)
    FROM pg_class c
    WHERE c.relnamespace = CAST(:schema AS regnamespace)
      AND c.relkind IN ('i', 'I')
    """,
    """
    SELECT 'tables/' || c.relname, coalesce(array_to_string(c.reloptions, ', '), 'no options')
    FROM pg_class c
    WHERE c.relnamespace = CAST(:schema AS regnamespace)
      AND c.relkind IN ('r', 'p')
    """,
)


def differences(database: scratch.Database) -> list[str]:
    """What the models would make, against what the migrations made."""
    assert MIGRATED is not None
    with create_engine(database.url, poolclass=pool.NullPool).begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {DECLARED} AUTHORIZATION symphony_owner"))
        connection.execute(text("SET LOCAL ROLE symphony_owner"))
        declared = connection.execution_options(schema_translate_map={MIGRATED: DECLARED})
        models.Base.metadata.create_all(declared)
        connection.execute(text("SET LOCAL search_path = ''"))
        wanted, found = (
            {
                path.replace(f"{name}.", ""): definition.replace(f"{name}.", f"{MIGRATED}.")
                for query in QUERIES
                for path, definition in connection.execute(text(query), {"schema": name})
                if "alembic_version" not in path
            }
            for name in (MIGRATED, DECLARED)
        )
        connection.rollback()
    return [
        f"{difference}: migrated {wanted.get(difference.path)}, model {found.get(difference.path)}"
        for difference in schema.compare(wanted, found)
    ]


def rule(table: Table, name: str) -> CheckConstraint:
    """A CHECK of the models, by its name without table and prefix."""
    return next(
        check
        for check in table.constraints
        if isinstance(check, CheckConstraint) and check.name == f"ck_{table.name}_{name}"
    )


POLICIES = models.Base.metadata.tables[f"{MIGRATED}.policy_versions"]


def test_the_models_make_what_the_migrations_made(database: scratch.Database) -> None:
    assert differences(database) == []


def test_a_check_that_a_model_forgets_is_named(
    database: scratch.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = rule(POLICIES, "times")
    monkeypatch.setattr(POLICIES, "constraints", POLICIES.constraints - {forgotten})
    [named] = differences(database)
    assert named.startswith("missing: constraints/policy_versions/ck_policy_versions_times: ")


def test_a_check_that_a_model_words_otherwise_is_named(
    database: scratch.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule(POLICIES, "status"), "sqltext", text("status IN ('ACTIVE', 'GRACE')"))
    [named] = differences(database)
    assert named.startswith("changed: constraints/policy_versions/ck_policy_versions_status: ")


def test_an_index_that_a_model_words_otherwise_is_named(
    database: scratch.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    [index] = [one for one in POLICIES.indexes if one.name == "uq_policy_versions_grace"]
    monkeypatch.setitem(index.dialect_options["postgresql"], "where", text("status = 'ACTIVE'"))
    [named] = differences(database)
    assert named.startswith("changed: indexes/uq_policy_versions_grace: ")
