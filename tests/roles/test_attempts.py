"""Each login tries each statement on each object, and gets 42501 exactly where the matrix says
so."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.roles.matrix import MAY_SELECT, NOBODY, PRINCIPALS, RUNTIME_ROLES, may_execute
from tests.support import Connect

Principal = Callable[[str], Connect]

INSUFFICIENT_PRIVILEGE = "42501"
NO_SUCH_VERB_ON_A_VIEW = {"42809", "55000", "0A000"}
"""The SQLSTATEs for a statement that a view does not support, whatever the privileges are."""

READS = {"SELECT": "SELECT FROM {} LIMIT 0"}
# Each statement needs one privilege and no SELECT, so a missing SELECT cannot be the cause.
WRITES = {
    "INSERT": "INSERT INTO {} DEFAULT VALUES",
    "COPY FROM": "COPY {} FROM STDIN",
    "UPDATE": "UPDATE {} SET {} = DEFAULT WHERE false",
    "DELETE": "DELETE FROM {} WHERE false",
    "MERGE INSERT": (
        "MERGE INTO {} USING (VALUES (1)) AS s (x) ON false"
        " WHEN NOT MATCHED THEN INSERT DEFAULT VALUES"
    ),
    "MERGE UPDATE": (
        "MERGE INTO {} USING (VALUES (1)) AS s (x) ON false"
        " WHEN MATCHED THEN UPDATE SET {} = DEFAULT"
    ),
    "MERGE DELETE": "MERGE INTO {} USING (VALUES (1)) AS s (x) ON false WHEN MATCHED THEN DELETE",
    "TRUNCATE": "TRUNCATE {}",
    "SELECT FOR UPDATE": "SELECT FROM {} FOR UPDATE",
    "SELECT FOR KEY SHARE": "SELECT FROM {} FOR KEY SHARE",
    "LOCK": "LOCK TABLE {} IN EXCLUSIVE MODE",
    "CREATE TRIGGER": (
        "CREATE TRIGGER stray BEFORE INSERT ON {} FOR EACH STATEMENT"
        " EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()"
    ),
    "CREATE RULE": "CREATE RULE stray AS ON DELETE TO {} DO INSTEAD NOTHING",
    "DISABLE TRIGGER": "ALTER TABLE {} DISABLE TRIGGER ALL",
}
ELSEWHERE = {
    "become the owner": "SET ROLE symphony_owner",
    "give oneself the owner": "GRANT symphony_owner TO CURRENT_USER",
    "silence triggers": "SET session_replication_role = replica",
    "create a table in the schema": "CREATE TABLE orchestration.stray (id integer)",
    "create a function in the schema": (
        "CREATE FUNCTION orchestration.stray() RETURNS integer LANGUAGE sql RETURN 1"
    ),
    "replace a guard": (
        "CREATE OR REPLACE FUNCTION orchestration.refuse_change() RETURNS trigger"
        " LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    ),
    "drop the schema": "DROP SCHEMA orchestration CASCADE",
}


def attempt(connection: Connect, statement: sql.Composable | str) -> psycopg.Error | None:
    """Return the error of the statement, if any. Its effect is rolled back."""
    query = sql.SQL(statement) if isinstance(statement, str) else statement
    try:
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            if query.as_string(connection).startswith("COPY"):
                with cursor.copy(query):
                    pass
            else:
                cursor.execute(query)
    except psycopg.Error as error:
        return error
    return None


def refused_natively(error: psycopg.Error | None) -> bool:
    """Whether the server's own check of privileges or ownership raised the error, not our RAISE."""
    return (
        error is not None
        and error.sqlstate == INSUFFICIENT_PRIVILEGE
        and error.diag.source_function != "exec_stmt_raise"
    )


def refused_as_object(error: psycopg.Error | None, *names: str) -> bool:
    """Whether the server refused access to one of the named objects, not to one that they use."""
    return (
        error is not None
        and refused_natively(error)
        and error.diag.source_function == "aclcheck_error"
        and any(name in (error.diag.message_primary or "") for name in names)
    )


def gates_of(role: str) -> tuple[str, ...]:
    return ("orchestration",) if role == NOBODY else ()


@pytest.mark.parametrize("relation", MAY_SELECT)
@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_reads_what_it_may_and_writes_nothing(
    principal: Principal, catalogue: Connect, role: str, relation: str
) -> None:
    row = catalogue.execute(
        """
        SELECT c.relkind, a.attname
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
        WHERE c.oid = to_regclass('orchestration.' || %s)
        """,
        (relation,),
    ).fetchone()
    assert row is not None, f"{relation} does not exist"
    kind, column = row
    login = principal(role)
    target = sql.Identifier("orchestration", relation)

    found = {
        verb: attempt(login, sql.SQL(statement).format(target, sql.Identifier(column)))
        for verb, statement in (READS | WRITES).items()
    }

    wrong = {
        verb: error
        for verb, error in found.items()
        if not (
            (error is None)
            if verb in READS and role in MAY_SELECT[relation]
            else refused_as_object(error, relation, *gates_of(role))
            or (
                kind == "v"
                and verb in WRITES
                and error is not None
                and error.sqlstate in NO_SUCH_VERB_ON_A_VIEW
            )
        )
    }
    assert wrong == {}


def calls(catalogue: Connect) -> Iterator[tuple[str, str]]:
    """Yield every function with a call in which each argument is null. The nulls come from
    sub-selects: the planner would replace a STRICT function of constant nulls by null, and EXECUTE
    would not be checked."""
    for name, kind, types in catalogue.execute(
        """
        SELECT p.proname, p.prokind,
               ARRAY(SELECT format_type(a.type, NULL)
                     FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place)
                     ORDER BY a.place)
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
        ORDER BY p.proname
        """
    ):
        assert kind == "f", f"{name} is no plain function"
        nulls = ", ".join(f"(SELECT NULL::{type_})" for type_ in types)
        yield name, f"SELECT orchestration.{name}({nulls})"


@pytest.mark.parametrize("role", PRINCIPALS)
def test_a_role_reaches_its_functions_and_no_other(
    principal: Principal, catalogue: Connect, role: str
) -> None:
    login = principal(role)
    wrong = {}
    for name, call in calls(catalogue):
        error = attempt(login, call)
        if role in may_execute(name):
            right = error is None or error.sqlstate != INSUFFICIENT_PRIVILEGE
        else:
            right = refused_as_object(error, name, *gates_of(role))
        if not right:
            wrong[call] = error
    assert wrong == {}


@pytest.mark.parametrize("role", PRINCIPALS)
@pytest.mark.parametrize("act", ELSEWHERE)
def test_a_role_cannot(principal: Principal, role: str, act: str) -> None:
    error = attempt(principal(role), ELSEWHERE[act])
    assert refused_natively(error), error


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_a_role_cannot_become_another(principal: Principal, role: str) -> None:
    login = principal(role)
    assert attempt(login, f"SET ROLE symphony_{role}") is None
    for other in set(RUNTIME_ROLES) - {role}:
        error = attempt(login, f"SET ROLE symphony_{other}")
        assert refused_natively(error), other
