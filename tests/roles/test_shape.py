"""The rules for functions, triggers, tables and views, checked in the catalogue."""

import pytest

from tests.roles.matrix import AS_CALLER, EVIDENCE, MAY_SELECT, OWNER_VIEWS, RUNTIME_ROLES, WRITERS
from tests.roles.reading import names, rows
from tests.support import Connect

PINNED = "search_path=pg_catalog, orchestration, pg_temp"
# Bits of pg_trigger.tgtype. A statement trigger does not have the first bit.
ROW, BEFORE, TRUNCATE = 1, 2, 32
GROUPS = [f"symphony_{role}" for role in RUNTIME_ROLES]


def test_every_function_pins_its_search_path_or_was_parsed_when_made(catalogue: Connect) -> None:
    functions = rows(
        catalogue,
        """
        SELECT p.oid::regprocedure::text, coalesce(p.proconfig, '{}'), p.prosqlbody IS NOT NULL
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
        """,
    )
    assert functions
    assert [
        name for name, settings, parsed in functions if not parsed and PINNED not in settings
    ] == []


def test_no_function_is_public(catalogue: Connect) -> None:
    public = names(
        catalogue,
        """
        SELECT p.oid::regprocedure::text
        FROM pg_catalog.pg_proc p,
             aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
        WHERE p.pronamespace = 'orchestration'::regnamespace AND x.grantee = 0
        """,
    )
    assert public == set()


def test_every_trigger_function_runs_as_the_owner(catalogue: Connect) -> None:
    as_caller = names(
        catalogue,
        """
        SELECT p.oid::regprocedure::text
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
          AND p.prorettype = 'trigger'::regtype
          AND NOT p.prosecdef
        """,
    )
    assert as_caller == set()


def test_a_function_that_a_role_executes_runs_as_the_owner_unless_it_is_listed(
    catalogue: Connect,
) -> None:
    as_caller = names(
        catalogue,
        """
        SELECT p.proname
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
          AND NOT p.prosecdef
          AND EXISTS (SELECT FROM unnest(%s::text[]) AS g (name)
                      WHERE has_function_privilege(g.name, p.oid, 'EXECUTE'))
        """,
        GROUPS,
    )
    assert as_caller == AS_CALLER


def test_every_trigger_of_ours_calls_a_function_of_ours(catalogue: Connect) -> None:
    foreign = names(
        catalogue,
        """
        SELECT t.tgrelid::regclass || '.' || t.tgname
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND NOT t.tgisinternal
          AND p.pronamespace <> 'orchestration'::regnamespace
        """,
    )
    assert foreign == set()


def test_every_object_belongs_to_symphony_owner(catalogue: Connect) -> None:
    others = rows(
        catalogue,
        """
        WITH objects (name, owner) AS (
          SELECT n.nspname::text, n.nspowner FROM pg_catalog.pg_namespace n
          WHERE n.nspname = 'orchestration'
          UNION ALL
          SELECT c.relname, c.relowner FROM pg_catalog.pg_class c
          WHERE c.relnamespace = 'orchestration'::regnamespace
          UNION ALL
          SELECT p.proname, p.proowner FROM pg_catalog.pg_proc p
          WHERE p.pronamespace = 'orchestration'::regnamespace
          UNION ALL
          SELECT t.typname, t.typowner FROM pg_catalog.pg_type t
          WHERE t.typnamespace = 'orchestration'::regnamespace
        )
        SELECT name, owner::regrole::text FROM objects WHERE owner <> 'symphony_owner'::regrole
        """,
    )
    assert others == []


def test_there_are_no_rules(catalogue: Connect) -> None:
    rules = names(
        catalogue,
        """
        SELECT c.relname || '.' || r.rulename
        FROM pg_catalog.pg_rewrite r
        JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
        WHERE c.relnamespace = 'orchestration'::regnamespace AND r.rulename <> '_RETURN'
        """,
    )
    assert rules == set()


def test_every_relation_is_a_logged_plain_table_or_a_view(catalogue: Connect) -> None:
    odd = rows(
        catalogue,
        """
        SELECT c.relname, c.relkind, c.relpersistence, c.relispartition, c.relhassubclass,
               c.relrowsecurity
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND c.relkind NOT IN ('i', 'c')
          AND (c.relkind NOT IN ('r', 'v') OR c.relpersistence <> 'p' OR c.relispartition
               OR c.relhassubclass OR c.relrowsecurity)
        """,
    )
    assert odd == []


def test_nothing_inherits(catalogue: Connect) -> None:
    children = rows(
        catalogue,
        """
        SELECT i.inhrelid::regclass::text, i.inhparent::regclass::text
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class c ON c.oid IN (i.inhrelid, i.inhparent)
        WHERE c.relnamespace = 'orchestration'::regnamespace
        """,
    )
    assert children == []


def test_every_constraint_and_index_is_in_force(catalogue: Connect) -> None:
    idle = names(
        catalogue,
        """
        SELECT c.conname FROM pg_catalog.pg_constraint c
        WHERE c.connamespace = 'orchestration'::regnamespace AND NOT c.convalidated
        UNION ALL
        SELECT c.relname FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND NOT (i.indisvalid AND i.indisready AND i.indislive)
        """,
    )
    assert idle == set()


def test_a_view_shows_no_more_than_its_reader_may_see(catalogue: Connect) -> None:
    views = dict(
        rows(
            catalogue,
            """
            SELECT c.relname, coalesce(c.reloptions, '{}')
            FROM pg_catalog.pg_class c
            WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind = 'v'
            """,
        )
    )
    assert views.keys() >= OWNER_VIEWS
    as_owner = {view for view, options in views.items() if "security_invoker=true" not in options}
    assert as_owner == OWNER_VIEWS
    assert {view for view in as_owner if views[view] != ["security_barrier=true"]} == set()


def test_a_view_of_the_outbox_shows_no_payload(catalogue: Connect) -> None:
    shown = names(
        catalogue,
        """
        SELECT a.attname
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid IN ('orchestration.payment_outbox_status'::regclass,
                             'orchestration.payment_outbox_depth'::regclass)
          AND a.attnum > 0
        """,
    )
    assert shown & {"payload", "payload_salt", "lease_token"} == set()


def test_every_trigger_that_rejects_fires_in_replica_mode_too(catalogue: Connect) -> None:
    triggers = dict(
        rows(
            catalogue,
            """
            SELECT c.relname || '.' || t.tgname, t.tgenabled
            FROM pg_catalog.pg_trigger t
            JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
            WHERE c.relnamespace = 'orchestration'::regnamespace AND NOT t.tgisinternal
            """,
        )
    )
    assert {name for name, enabled in triggers.items() if enabled != "A"} == WRITERS
    assert triggers.keys() >= WRITERS


def test_no_trigger_changes_a_row_after_another_has_checked_it(catalogue: Connect) -> None:
    """If an event has two BEFORE triggers, the second by name could change a row that the first has
    checked."""
    crowded = rows(
        catalogue,
        """
        SELECT t.tgrelid::regclass::text, e.event, array_agg(t.tgname)
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid,
          (VALUES ('INSERT', 4), ('DELETE', 8), ('UPDATE', 16)) AS e (event, bit)
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND NOT t.tgisinternal
          AND (t.tgtype & %s) = %s
          AND (t.tgtype & e.bit) <> 0
        GROUP BY t.tgrelid, e.event
        HAVING count(*) > 1
        """,
        ROW | BEFORE,
        ROW | BEFORE,
    )
    assert crowded == []


def test_no_trigger_looks_at_named_columns_only(catalogue: Connect) -> None:
    """`UPDATE OF column` misses a change that another trigger makes."""
    narrowed = names(
        catalogue,
        """
        SELECT t.tgrelid::regclass || '.' || t.tgname
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND NOT t.tgisinternal
          AND cardinality(t.tgattr::int2[]) > 0
        """,
    )
    assert narrowed == set()


def test_every_table_rejects_or_checks_truncate(catalogue: Connect) -> None:
    unguarded = names(
        catalogue,
        """
        SELECT c.relname
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND c.relkind = 'r'
          AND c.relname <> 'alembic_version'
          AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_trigger t
            WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
              AND (t.tgtype & %s) = %s
          )
        """,
        ROW | BEFORE | TRUNCATE,
        BEFORE | TRUNCATE,
    )
    assert unguarded == set()


@pytest.mark.parametrize("table", EVIDENCE)
def test_evidence_records_who_wrote_it_and_in_which_transaction(
    catalogue: Connect, table: str
) -> None:
    columns = rows(
        catalogue,
        """
        SELECT a.attname, format_type(a.atttypid, NULL), a.attnotnull
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = to_regclass('orchestration.' || %s)
          AND a.attname IN ('db_user', 'xact_id')
        ORDER BY a.attname
        """,
        table,
    )
    assert columns == [("db_user", "text", True), ("xact_id", "bigint", True)]


@pytest.mark.parametrize("table", EVIDENCE)
def test_evidence_that_grows_is_found_by_its_transaction(catalogue: Connect, table: str) -> None:
    indexed = rows(
        catalogue,
        """
        SELECT a.attname
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_am m ON m.oid = c.relam
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = to_regclass('orchestration.' || %s) AND m.amname = 'brin'
        """,
        table,
    )
    assert indexed == ([] if table == "policy_versions" else [("xact_id",)])


def test_only_evidence_claims_to_be_evidence(catalogue: Connect) -> None:
    claiming = names(
        catalogue,
        """
        SELECT c.relname
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND c.relkind = 'r'
          AND a.attname = 'xact_id'
          AND NOT a.attisdropped
        """,
    )
    assert claiming == set(EVIDENCE)
    assert claiming <= MAY_SELECT.keys()
