"""Dump and restore: the ways that keep every row, guard, grant and chain, and the repair of
others."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import scratch

from tests.operations.conftest import Source
from tests.operations.support import (
    assert_goes_on,
    assert_kept,
    block,
    contents,
    differences,
    findings,
    libpq,
    run,
    shell,
    sqlstate,
)
from tests.support import connect, scalar

pytestmark = pytest.mark.own_cluster

Empty = Callable[[scratch.Server], URL]

DUMP = 'pg_dump --dbname="$SOURCE" --format=custom --file=evidence.dump'
RESTORE = 'pg_restore --dbname="$TARGET" --single-transaction'


def rows(url: URL) -> int:
    """Return the number of rows in the tables, including the version table."""
    return sum(len(found) for found in contents(url).values())


@pytest.mark.parametrize("way", ["Plain format", "Custom format"])
def test_schema_and_data_together_keep_everything_and_writes_go_on(
    source: Source, empty: Empty, tmp_path: Path, way: str
) -> None:
    restored = empty(source.at)
    run(block(way, "sh"), tmp_path, SOURCE=source.url, TARGET=restored)
    assert_kept(restored, source.url)
    assert_goes_on(restored, source.logins)
    assert differences(restored) == []


def test_a_restored_database_refuses_and_stops_as_the_dumped_one(
    source: Source, empty: Empty, tmp_path: Path
) -> None:
    dumped, restored = empty(source.at), empty(source.at)
    run(block("Custom format", "sh"), tmp_path, SOURCE=source.url, TARGET=dumped)
    with connect(source.logins["control"].set(database=dumped.database)) as control:
        control.execute(
            "SELECT FROM orchestration.engage_kill_switch(p_scope => 'GLOBAL', p_reason => 'test')"
        )
    run(block("Custom format", "sh"), tmp_path, SOURCE=dumped, TARGET=restored)
    with connect(source.logins["executor"].set(database=restored.database)) as executor:
        claim = "SELECT FROM orchestration.claim_outbox_batch('worker', 1, '1 minute')"
        assert sqlstate(executor, claim) == "P7501"
        assert sqlstate(executor, "DELETE FROM orchestration.audit_log") == "42501"
    with connect(restored) as superuser:
        superuser.execute("SET session_replication_role = replica")
        assert sqlstate(superuser, "DELETE FROM orchestration.audit_log") == "P0001"


def test_without_the_roles_a_restore_names_them_and_leaves_nothing(
    source: Source, elsewhere: scratch.Server, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(elsewhere)
    urls = {"SOURCE": source.url, "TARGET": restored}
    ran = shell(block("Custom format", "sh"), tmp_path, urls)
    assert ran.returncode == 1
    assert 'role "symphony_owner" does not exist' in ran.stderr
    with connect(restored) as superuser:
        assert scalar(superuser, "SELECT to_regnamespace('orchestration')") is None


def test_a_restore_that_continues_without_the_roles_gives_the_functions_to_the_superuser(
    source: Source, elsewhere: scratch.Server, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(elsewhere)
    urls = {"SOURCE": source.url, "TARGET": restored}
    ran = shell(f'{DUMP}; pg_restore --dbname="$TARGET" evidence.dump', tmp_path, urls)
    assert ran.returncode == 1
    assert contents(restored) == contents(source.url)
    found = differences(restored)
    assert {"functions/append_attestations", "grants/append_attestations"} <= set(found)
    assert {"tables/audit_log", "roles/symphony_owner"} <= set(found)


def test_with_the_roles_first_another_cluster_has_everything_and_its_logins_write_on(
    source: Source, elsewhere: scratch.Server, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(elsewhere)
    urls = {"SOURCE": source.url, "TARGET": restored}
    run(block("Into another cluster", "sh"), tmp_path, **urls)
    run(block("Custom format", "sh"), tmp_path, **urls)
    assert_kept(restored, source.url)
    at_restored = {"host": restored.host, "port": restored.port}
    assert_goes_on(restored, {r: url.set(**at_restored) for r, url in source.logins.items()})


def test_the_first_revision_makes_the_roles_as_well(
    source: Source, elsewhere: scratch.Server, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(elsewhere)
    scratch.upgrade(empty(elsewhere), "0001")
    run(block("Custom format", "sh"), tmp_path, SOURCE=source.url, TARGET=restored)
    assert_kept(restored, source.url)


def test_without_privileges_the_grants_are_lost_and_come_back_from_the_archive(
    source: Source, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(source.at)
    urls = {"SOURCE": source.url, "TARGET": restored}
    run(f"{DUMP}; {RESTORE} --no-privileges evidence.dump", tmp_path, **urls)
    found = differences(restored)
    assert {path.partition("/")[0] for path in found} == {"grants"}
    assert {"grants/schema", "grants/audit_log", "grants/raise_invariant"} <= set(found)
    with connect(restored) as superuser:
        assert scalar(
            superuser,
            "SELECT bool_and(has_function_privilege('public', p.oid, 'EXECUTE'))"
            " FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'orchestration'::regnamespace",
        )

    run(block("Grants from the archive", "sh"), tmp_path, **urls)
    assert_kept(restored, source.url)
    assert_goes_on(restored, source.logins)


def test_without_owner_everything_belongs_to_the_restoring_login_and_the_fingerprint_shows_it(
    source: Source, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(source.at)
    run(
        f"{DUMP}; {RESTORE} --no-owner evidence.dump",
        tmp_path,
        SOURCE=source.url,
        TARGET=restored,
    )
    assert contents(restored) == contents(source.url)
    assert {"functions/append_attestations", "tables/audit_log"} <= set(differences(restored))


WAYS = {
    "with triggers": "",
    "in replica mode": "PGOPTIONS='-c session_replication_role=replica' ",
    "--disable-triggers": "",
}


@pytest.mark.parametrize("way", WAYS)
def test_data_alone_into_a_migrated_database_is_refused_and_leaves_nothing(
    source: Source, empty: Empty, tmp_path: Path, way: str
) -> None:
    migrated = empty(source.at)
    scratch.upgrade(migrated)
    before = contents(migrated)
    options = "--disable-triggers" if way.startswith("--") else ""
    ran = shell(
        f"{DUMP}; {WAYS[way]}{RESTORE} --data-only {options} evidence.dump",
        tmp_path,
        {"SOURCE": source.url, "TARGET": migrated},
    )
    assert ran.returncode == 1
    assert "duplicate key value violates unique constraint" in ran.stderr
    assert contents(migrated) == before
    assert differences(migrated) == []


@pytest.mark.parametrize("way", ["with triggers", "in replica mode"])
def test_data_alone_into_the_dumps_own_schema_is_rejected_by_the_guards(
    source: Source, empty: Empty, tmp_path: Path, way: str
) -> None:
    restored = empty(source.at)
    urls = {"SOURCE": source.url, "TARGET": restored}
    run(f"{DUMP}; {RESTORE} --schema-only evidence.dump", tmp_path, **urls)
    ran = shell(f"{WAYS[way]}{RESTORE} --data-only evidence.dump", tmp_path, urls)
    assert ran.returncode == 1
    assert "INV-" in ran.stderr
    assert rows(restored) == 0


def test_data_alone_without_triggers_demotes_the_guards_until_they_are_put_back(
    source: Source, empty: Empty, tmp_path: Path
) -> None:
    restored = empty(source.at)
    run(block("Data apart from its schema", "sh"), tmp_path, SOURCE=source.url, TARGET=restored)
    assert contents(restored) == contents(source.url)
    found = differences(restored)
    assert {path.partition("/")[0] for path in found} == {"triggers"}
    with connect(restored) as superuser:
        superuser.execute("SET session_replication_role = replica")
        erase = "DELETE FROM orchestration.ingress_attestation_events"
        with superuser.transaction(force_rollback=True):
            assert superuser.execute(erase.encode()).rowcount > 0
        statements = superuser.execute(block("Re-enabling the guards", "sql").encode()).fetchall()
        assert len(statements) == len(found)
        for (statement,) in statements:
            superuser.execute(statement)
        assert sqlstate(superuser, erase) == "P0001"

    assert_kept(restored, source.url)
    assert_goes_on(restored, source.logins)


def test_the_fingerprint_of_the_document_prints_what_differs(source: Source, empty: Empty) -> None:
    migrated = empty(source.at)
    scratch.upgrade(migrated)
    script = block("Fingerprint", "python")

    def printed() -> str:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "TARGET": libpq(migrated)},
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout

    assert printed() == ""
    with connect(migrated) as superuser:
        superuser.execute("ALTER TABLE orchestration.audit_log ENABLE TRIGGER guard")
    assert printed() == "triggers/audit_log__guard\n"


def test_the_query_of_the_document_runs_every_verification(source: Source) -> None:
    with connect(source.url) as superuser:
        functions = superuser.execute(
            "SELECT p.proname FROM pg_catalog.pg_proc p"
            " WHERE p.pronamespace = 'orchestration'::regnamespace AND p.proname ^@ 'verify_'"
        ).fetchall()
    assert functions
    query = block("Verifying", "sql")
    assert {name for (name,) in functions if f"orchestration.{name}(" not in query} == set()


def test_an_auditor_can_run_it(source: Source) -> None:
    with connect(source.logins["auditor"].set(database=source.url.database)) as auditor:
        assert auditor.execute(block("Verifying", "sql").encode()).fetchall() == []


def test_an_edit_by_a_superuser_is_found_after_the_restore(
    source: Source, empty: Empty, tmp_path: Path
) -> None:
    edited, restored = empty(source.at), empty(source.at)
    run(block("Custom format", "sh"), tmp_path, SOURCE=source.url, TARGET=edited)
    with connect(edited) as superuser:
        superuser.execute(
            "ALTER TABLE orchestration.ingress_attestations DISABLE TRIGGER append_only;"
            " UPDATE orchestration.ingress_attestations SET payload_hash = repeat('0', 64)"
            " WHERE caller_identity = 'caller' AND chain_seq = 1"
        )
    run(block("Custom format", "sh"), tmp_path, SOURCE=edited, TARGET=restored)
    assert differences(restored) == ["triggers/ingress_attestations__append_only"]
    assert findings(restored) == [
        ("attestations", "caller", "record_hash is not the hash of the record")
    ]
