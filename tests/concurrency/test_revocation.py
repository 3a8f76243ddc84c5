"""Revocations under concurrency: one record is kept, and no use of a credential commits after its
revocation."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.concurrency.support import (
    PATIENCE_SECONDS,
    OverlappingWriters,
    begin,
    refused,
    take_snapshot,
    together,
)
from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    activate_policy,
    assert_invariant,
    await_blocked,
    backend,
    digest,
    scalar,
)

CALLERS = 8
HASH = digest("credential")

FUNCTIONS = {"revoked_client_certs": "revoke_client_cert", "revoked_tokens": "revoke_token"}
KEYS = {"revoked_client_certs": "cert_fingerprint_sha256", "revoked_tokens": "token_hash"}
FIELDS = {"revoked_client_certs": "client_cert_fingerprint_sha256", "revoked_tokens": "token_hash"}

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
each_table = pytest.mark.parametrize("table", list(FUNCTIONS))


def revoke(connection: Connect, table: str, by: str = "ops") -> tuple[Any, ...]:
    row = connection.execute(
        f"SELECT * FROM orchestration.{FUNCTIONS[table]}(%s, 'keyCompromise', %s)",
        (HASH, by),
    ).fetchone()
    assert row is not None
    return row


def attest(connection: Connect, caller: str, key: str, **fields: str) -> None:
    item = {
        "caller_identity": caller,
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": "v1",
        **fields,
    }
    connection.execute("SELECT FROM orchestration.append_attestations(%s)", (json.dumps([item]),))


def using(table: str) -> dict[str, str]:
    return {FIELDS[table]: HASH}


def count(connection: Connect, table: str) -> int:
    return int(scalar(connection, f"SELECT count(*) FROM orchestration.{table}"))


# Concurrent revocations.


@pytest.mark.invariant("INV-REV-006")
@each_table
@each_isolation
def test_sixteen_revocations_at_once_keep_one_record(
    owner: Connect, login: Callable[[str], Connect], table: str, isolation: str
) -> None:
    def revocation(number: int) -> Callable[[threading.Barrier], tuple[Any, ...]]:
        connection = login("control")

        def work(barrier: threading.Barrier) -> tuple[Any, ...]:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                made = revoke(connection, table, f"ops {number}")
                connection.execute("COMMIT")
            return made

        return work

    results = together([revocation(number) for number in range(16)])
    stored = owner.execute(f"SELECT * FROM orchestration.{table}").fetchall()
    kept = [one for one in results if not isinstance(one, psycopg.Error)]
    lost = [one.sqlstate for one in results if isinstance(one, psycopg.Error)]
    assert len(stored) == 1
    assert kept == stored * len(kept)
    if isolation == "READ COMMITTED":
        assert lost == []
    else:
        # All snapshots are older than the first revocation.
        assert lost == ["40001"] * 15


# A revocation and the callers that use the credential.


LATE = """
SELECT count(*) FILTER (WHERE pg_xact_commit_timestamp(a.xact_id::text::xid)
                              > pg_xact_commit_timestamp(r.xact_id::text::xid)),
       count(*)
FROM orchestration.ingress_attestations a, orchestration.{} r
"""


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-009")
@each_table
@each_isolation
def test_a_revocation_gets_in_under_overlapping_callers_and_nothing_commits_after_it(
    superuser: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    table: str,
    isolation: str,
) -> None:
    activate_policy(superuser)
    control = login("control")
    control.execute("SET statement_timeout = '5s'")
    callers = OverlappingWriters(
        [login("ingest") for _ in range(CALLERS)],
        isolation,
        lambda one, caller, number: attest(one, f"caller {caller}", f"k{number}", **using(table)),
    )
    with callers.at_work(background) as futures:
        revoke(control, table)
        refusals = [future.result(PATIENCE_SECONDS) for future in futures]

    late, attested = superuser.execute(LATE.format(table)).fetchone() or (None, None)
    assert late == 0
    assert attested >= CALLERS
    # Every caller was rejected in the end. Callers with older snapshots got 40001 as well.
    assert all("P7202" in codes for codes in refusals)
    allowed = {"P7202"} if isolation == "READ COMMITTED" else {"P7202", "40001"}
    assert set().union(*refusals) <= allowed
    for number in range(CALLERS):
        assert scalar(
            superuser,
            "SELECT ok FROM orchestration.verify_attestation_chain(%s)",
            (f"caller {number}",),
        )


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_without_its_gate_a_revocation_overtakes_a_caller_in_flight(
    superuser: Connect, login: Callable[[str], Connect], table: str
) -> None:
    activate_policy(superuser)
    superuser.execute(f"DROP TRIGGER gate ON orchestration.{table}")
    ingest = login("ingest")
    begin(ingest, "READ COMMITTED")
    attest(ingest, "alice", "k1", **using(table))
    # The function locks the gate itself. An INSERT by the owner has only the trigger.
    superuser.execute(
        f"INSERT INTO orchestration.{table} ({KEYS[table]}, reason_code)"
        " VALUES (%s, 'keyCompromise')",
        (HASH,),
    )
    ingest.execute("COMMIT")
    assert superuser.execute(LATE.format(table)).fetchone() == (1, 1)


@pytest.mark.invariant("INV-ATT-009")
@each_table
@each_isolation
def test_a_revocation_waits_for_a_caller_that_was_checked_before(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    table: str,
    isolation: str,
) -> None:
    activate_policy(owner)
    ingest, control = login("ingest"), login("control")
    begin(ingest, isolation)
    attest(ingest, "alice", "k1", **using(table))
    revoking = background.submit(revoke, control, table)
    assert await_blocked(owner, backend(control)) == [backend(ingest)]
    assert count(owner, table) == 0
    released = scalar(ingest, "SELECT clock_timestamp()")
    ingest.execute("COMMIT")
    made = revoking.result(PATIENCE_SECONDS)
    # revoked_at is read after the gate was taken, so everything that was checked before is older.
    assert made[2] > released
    assert made[2] == made[3]


@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_under_read_committed_a_caller_that_waited_is_checked_against_the_new_state(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    table: str,
) -> None:
    activate_policy(owner)
    ingest, control = login("ingest"), login("control")
    with control.transaction():
        revoke(control, table)
        begin(ingest, "READ COMMITTED")
        take_snapshot(ingest)
        waiting = background.submit(
            lambda: refused(lambda: attest(ingest, "alice", "k1", **using(table)))
        )
        await_blocked(owner, backend(ingest))
    found = waiting.result(PATIENCE_SECONDS)
    assert_invariant(found, "INV-ATT-009", "P7202", table)


@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_a_caller_that_waited_for_a_revocation_that_was_undone_attests(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    table: str,
) -> None:
    activate_policy(owner)
    ingest, control = login("ingest"), login("control")
    with control.transaction(force_rollback=True):
        revoke(control, table)
        waiting = background.submit(attest, ingest, "alice", "k1", **using(table))
        await_blocked(owner, backend(ingest))
    waiting.result(PATIENCE_SECONDS)
    assert count(owner, "ingress_attestations") == 1


@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize("fields", [{"token_hash": HASH}, {}], ids=["the credential", "another"])
@each_snapshot
def test_an_older_snapshot_gets_40001(
    owner: Connect, login: Callable[[str], Connect], isolation: str, fields: dict[str, str]
) -> None:
    activate_policy(owner)
    ingest = login("ingest")
    begin(ingest, isolation)
    take_snapshot(ingest)
    revoke(login("control"), "revoked_tokens")
    found = refused(lambda: attest(ingest, "alice", "k1", **fields))
    assert found.sqlstate == "40001"
    ingest.execute("ROLLBACK")

    begin(ingest, isolation)
    if fields:
        found = refused(lambda: attest(ingest, "alice", "k1", **fields))
        assert_invariant(found, "INV-ATT-009", "P7202", "revoked_tokens")
    else:
        attest(ingest, "alice", "k1")
        ingest.execute("COMMIT")


@pytest.mark.invariant("INV-ATT-009")
@each_snapshot
def test_the_requirement_rejects_an_older_snapshot_with_40001_too(
    login: Callable[[str], Connect], isolation: str
) -> None:
    executor = login("executor")
    statement = "SELECT orchestration.require_credential_not_revoked(p_token_hash => %s)"
    begin(executor, isolation)
    take_snapshot(executor)
    revoke(login("control"), "revoked_tokens")
    assert refused(lambda: executor.execute(statement, (HASH,))).sqlstate == "40001"
    executor.execute("ROLLBACK")
    begin(executor, isolation)
    found = refused(lambda: executor.execute(statement, (HASH,)))
    assert_invariant(found, "INV-ATT-009", "P7202", "revoked_tokens")


@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_a_revocation_gives_up_where_a_caller_idles_and_the_others_go_on(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    table: str,
) -> None:
    activate_policy(owner)
    idle, other, control = login("ingest"), login("ingest"), login("control")
    begin(idle, "READ COMMITTED")
    attest(idle, "alice", "k1")
    revoking = background.submit(refused, lambda: revoke(control, table))
    await_blocked(owner, backend(control))
    following = background.submit(attest, other, "bob", "k1")
    assert await_blocked(owner, backend(other)) == [backend(control)]
    assert revoking.result(PATIENCE_SECONDS).sqlstate == "55P03"
    following.result(PATIENCE_SECONDS)
    idle.execute("COMMIT")
    revoke(control, table)
    assert count(owner, table) == 1
