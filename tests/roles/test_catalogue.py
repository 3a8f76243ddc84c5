"""The catalogue grants exactly the privileges that the matrix lists, and no others."""

import pytest
from tools import scratch

from tests.roles.matrix import (
    MAY_EXECUTE,
    MAY_SELECT,
    NOBODY,
    PRINCIPALS,
    RUNTIME_ROLES,
    may_execute,
)
from tests.support import Connect

RELATION_VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
COLUMN_VERBS = ("SELECT", "INSERT", "UPDATE", "REFERENCES")

RELATIONS = """
SELECT c.relname
FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind NOT IN ('i', 'I', 'c', 't')
"""
FUNCTIONS = """
SELECT p.proname FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'orchestration'::regnamespace
"""


def names(catalogue: Connect, query: str) -> set[str]:
    return {name for (name,) in catalogue.execute(query)}


def relation_verbs(catalogue: Connect) -> list[str]:
    maintain = ("MAINTAIN",) if catalogue.info.server_version >= 170000 else ()
    return [*RELATION_VERBS, *maintain]


def login_of(migrated: scratch.Database, role: str) -> str:
    username = migrated.logins[role].username
    assert username is not None
    return username


def test_every_relation_is_in_the_matrix_and_every_entry_exists(catalogue: Connect) -> None:
    found = names(catalogue, RELATIONS)
    assert {"forgotten": found - MAY_SELECT.keys(), "absent": MAY_SELECT.keys() - found} == {
        "forgotten": set(),
        "absent": set(),
    }


def test_every_function_of_the_matrix_exists(catalogue: Connect) -> None:
    assert MAY_EXECUTE.keys() - names(catalogue, FUNCTIONS) == set()


@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_holds_exactly_its_rights_on_relations(
    catalogue: Connect, migrated: scratch.Database, role: str
) -> None:
    held = {
        (relation, verb)
        for relation, verb in catalogue.execute(
            """
            SELECT c.relname, v.verb
            FROM pg_catalog.pg_class c, unnest(%s::text[]) AS v (verb)
            WHERE c.relnamespace = 'orchestration'::regnamespace
              AND c.relkind NOT IN ('i', 'I', 'c', 't', 'S')
              AND has_table_privilege(%s, c.oid, v.verb)
            """,
            (relation_verbs(catalogue), login_of(migrated, role)),
        )
    }
    assert held == {(relation, "SELECT") for relation, who in MAY_SELECT.items() if role in who}


@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_holds_no_right_on_a_column_that_it_lacks_on_the_relation(
    catalogue: Connect, migrated: scratch.Database, role: str
) -> None:
    held = {
        (relation, column, verb)
        for relation, column, verb in catalogue.execute(
            """
            SELECT c.relname, a.attname, v.verb
            FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped,
              unnest(%(verbs)s::text[]) AS v (verb)
            WHERE c.relnamespace = 'orchestration'::regnamespace
              AND c.relkind NOT IN ('i', 'I', 'c', 't', 'S')
              AND has_column_privilege(%(login)s, c.oid, a.attnum, v.verb)
              AND NOT has_table_privilege(%(login)s, c.oid, v.verb)
            """,
            {"verbs": list(COLUMN_VERBS), "login": login_of(migrated, role)},
        )
    }
    assert held == set()


@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_executes_exactly_its_functions(
    catalogue: Connect, migrated: scratch.Database, role: str
) -> None:
    rows = catalogue.execute(
        """
        SELECT p.proname, p.oid::regprocedure::text, has_function_privilege(%s, p.oid, 'EXECUTE')
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
        """,
        (login_of(migrated, role),),
    ).fetchall()
    held = {signature for _, signature, may in rows if may}
    assert held == {signature for name, signature, _ in rows if role in may_execute(name)}


@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_uses_the_schema_and_creates_nothing_in_it(
    catalogue: Connect, migrated: scratch.Database, role: str
) -> None:
    row = catalogue.execute(
        """
        SELECT has_schema_privilege(%(login)s, 'orchestration', 'USAGE'),
               has_schema_privilege(%(login)s, 'orchestration', 'CREATE'),
               has_database_privilege(%(login)s, current_database(), 'CREATE')
        """,
        {"login": login_of(migrated, role)},
    ).fetchone()
    assert row == (role != NOBODY, False, False)


def test_every_grant_was_made_by_the_owner_to_a_runtime_role_without_grant_option(
    catalogue: Connect,
) -> None:
    strays = catalogue.execute(
        """
        WITH acls (object, owner, acl) AS (
          SELECT n.nspname::text, n.nspowner, n.nspacl
          FROM pg_catalog.pg_namespace n
          WHERE n.nspname = 'orchestration'
          UNION ALL
          SELECT c.relname, c.relowner, c.relacl
          FROM pg_catalog.pg_class c
          WHERE c.relnamespace = 'orchestration'::regnamespace
          UNION ALL
          SELECT c.relname || '.' || a.attname, c.relowner, a.attacl
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
          WHERE c.relnamespace = 'orchestration'::regnamespace
          UNION ALL
          SELECT p.oid::regprocedure::text, p.proowner,
                 coalesce(p.proacl, acldefault('f', p.proowner))
          FROM pg_catalog.pg_proc p
          WHERE p.pronamespace = 'orchestration'::regnamespace
        )
        SELECT object, grantor::regrole::text, grantee::regrole::text, privilege_type
        FROM acls CROSS JOIN LATERAL aclexplode(acl) x
        WHERE grantor <> 'symphony_owner'::regrole
           OR (grantee <> owner AND (is_grantable OR grantee <> ALL (%s::regrole[])))
        """,
        ([f"symphony_{role}" for role in RUNTIME_ROLES],),
    ).fetchall()
    assert strays == []
