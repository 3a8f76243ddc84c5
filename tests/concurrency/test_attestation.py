"""Attestations under concurrency: a chain has no fork and no gap, and a key has one record. A
change of policy is ordered after the records that were checked before it."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from tools import scratch

from tests.concurrency.support import (
    PATIENCE_SECONDS,
    OverlappingWriters,
    begin,
    errors_of,
    refused,
    take_snapshot,
    together,
)
from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    attestation_record_hash,
    await_blocked,
    backend,
    connect,
    digest,
    scalar,
)

WRITERS = 32
APPENDS = 4
CALLERS = 8

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])


def item(caller: str, key: str, policy: str = "v1") -> dict[str, str]:
    return {
        "caller_identity": caller,
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": policy,
    }


def append(connection: Connect, *items: dict[str, str]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT * FROM orchestration.append_attestations(%s)", (json.dumps(items),)
    ).fetchall()


def assert_whole(connection: Connect, caller: str) -> list[str]:
    """Check that the chain has no gap, that each link and hash is right by our own computation, and
    that the head is the last record. Return the keys."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM orchestration.ingress_attestations WHERE caller_identity = %s"
            " ORDER BY chain_seq",
            (caller,),
        )
        records = cursor.fetchall()
    assert [record["chain_seq"] for record in records] == list(range(1, len(records) + 1))
    before = ""
    for record in records:
        assert record["prev_hash"] == before
        assert record["record_hash"] == attestation_record_hash(record)
        before = record["record_hash"]
    head = connection.execute(
        "SELECT chain_seq, record_hash FROM orchestration.ingress_attestation_heads"
        " WHERE caller_identity = %s",
        (caller,),
    ).fetchone()
    assert head == (len(records), before)
    report = connection.execute(
        "SELECT ok, records FROM orchestration.verify_attestation_chain(%s)", (caller,)
    ).fetchone()
    assert report == (True, len(records))
    return [record["idempotency_key"] for record in records]


# One chain, many writers.


@pytest.mark.invariant("INV-ATT-004", "INV-ATT-005")
@each_isolation
def test_many_writers_continue_one_chain(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    activate_policy(owner)

    def writing(number: int) -> Callable[[threading.Barrier], tuple[list[str], list[str | None]]]:
        connection = login("ingest")

        def work(barrier: threading.Barrier) -> tuple[list[str], list[str | None]]:
            done: list[str] = []
            failed: list[str | None] = []
            barrier.wait()
            for again in range(APPENDS):
                key = f"{number}-{again}"
                try:
                    begin(connection, isolation)
                    append(connection, item("alice", key))
                    connection.execute("COMMIT")
                    done.append(key)
                except psycopg.Error as error:
                    connection.execute("ROLLBACK")
                    failed.append(error.sqlstate)
            return done, failed

        return work

    results = together([writing(number) for number in range(WRITERS)])
    outcomes = [one for one in results if not isinstance(one, psycopg.Error)]
    assert len(outcomes) == WRITERS
    done = [key for keys, _ in outcomes for key in keys]
    failed = [code for _, codes in outcomes for code in codes]
    assert sorted(assert_whole(owner, "alice")) == sorted(done)
    assert len(done) + len(failed) == WRITERS * APPENDS
    assert done
    if isolation == "READ COMMITTED":
        assert failed == []
    else:
        assert set(failed) <= {"40001"}


@pytest.mark.invariant("INV-ATT-004", "INV-ATT-005")
@pytest.mark.parametrize("begun", [False, True], ids=["a new chain", "a chain that exists"])
@each_snapshot
def test_of_many_writers_with_one_snapshot_one_continues_the_chain(
    owner: Connect, login: Callable[[str], Connect], isolation: str, begun: bool
) -> None:
    activate_policy(owner)
    if begun:
        append(owner, item("alice", "first"))

    def writing(number: int) -> Callable[[threading.Barrier], str]:
        connection = login("ingest")

        def work(barrier: threading.Barrier) -> str:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                append(connection, item("alice", str(number)))
                connection.execute("COMMIT")
            return str(number)

        return work

    results = together([writing(number) for number in range(WRITERS)])
    (winner,) = [one for one in results if isinstance(one, str)]
    assert errors_of(results) == ["40001"] * (WRITERS - 1)
    assert assert_whole(owner, "alice") == ([*(["first"] if begun else []), winner])


@pytest.mark.invariant("INV-ATT-005")
@each_isolation
def test_the_owner_inserting_by_hand_and_the_function_share_one_chain(
    owner: Connect,
    database: scratch.Database,
    login: Callable[[str], Connect],
    connections: Callable[[Any], Connect],
    isolation: str,
) -> None:
    activate_policy(owner)

    def writing(number: int) -> Callable[[threading.Barrier], str]:
        connection = connections(database.url) if number % 2 else login("ingest")

        def work(barrier: threading.Barrier) -> str:
            with connection:
                barrier.wait()
                begin(connection, isolation)
                if number % 2:
                    connection.execute(
                        "INSERT INTO orchestration.ingress_attestations (caller_identity,"
                        " idempotency_key, payload_hash, policy_version_id)"
                        " VALUES ('alice', %s, %s, 'v1')",
                        (str(number), digest(number)),
                    )
                else:
                    append(connection, item("alice", str(number)))
                connection.execute("COMMIT")
            return str(number)

        return work

    results = together([writing(number) for number in range(16)])
    done = [one for one in results if isinstance(one, str)]
    assert sorted(assert_whole(owner, "alice")) == sorted(done)
    assert set(errors_of(results)) <= (set() if isolation == "READ COMMITTED" else {"40001"})


@pytest.mark.invariant("INV-ATT-005")
def test_where_the_head_is_not_locked_the_unique_constraint_decides_the_race(
    owner: Connect,
    database: scratch.Database,
    connections: Callable[[Any], Connect],
    background: ThreadPoolExecutor,
) -> None:
    activate_policy(owner)
    append(owner, item("alice", "k1"))
    owner.execute("DROP TRIGGER guard ON orchestration.ingress_attestations")
    statement = (
        "INSERT INTO orchestration.ingress_attestations (id, caller_identity, chain_seq,"
        " idempotency_key, payload_hash, policy_version_id, attested_at, prev_hash, record_hash,"
        " db_user, xact_id) SELECT gen_random_uuid(), 'alice', {}, %s, payload_hash, 'v1', now(),"
        " record_hash, repeat('0', 64), 'x', 1 FROM orchestration.ingress_attestations"
        " WHERE chain_seq = 1"
    )
    for seqs, constraint in (((2, 2), "chain_seq"), ((3, 4), "prev_hash")):
        one, other = connections(database.url), connections(database.url)
        if constraint == "prev_hash":
            owner.execute(
                "ALTER TABLE orchestration.ingress_attestations"
                " DROP CONSTRAINT uq_ingress_attestations_caller_identity_chain_seq"
            )
        begin(one, "READ COMMITTED")
        begin(other, "READ COMMITTED")
        one.execute(statement.format(seqs[0]), ("one",))
        following = background.submit(
            refused,
            lambda other=other, seq=seqs[1]: other.execute(statement.format(seq), ("other",)),
        )
        assert await_blocked(owner, backend(other)) == [backend(one)]
        # The record is deleted below, so that it does not block the second race.
        one.execute("COMMIT")
        found = following.result(PATIENCE_SECONDS)
        assert (found.sqlstate, found.constraint) == (
            "23505",
            f"uq_ingress_attestations_caller_identity_{constraint}",
        )
        owner.execute("ALTER TABLE orchestration.ingress_attestations DISABLE TRIGGER append_only")
        owner.execute("DELETE FROM orchestration.ingress_attestations WHERE chain_seq > 1")


# One key, many writers.


@pytest.mark.invariant("INV-ATT-007")
@each_isolation
def test_sixteen_at_once_with_one_key_make_one_record(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    activate_policy(owner)

    def writing() -> Callable[[threading.Barrier], list[tuple[Any, ...]]]:
        connection = login("ingest")

        def work(barrier: threading.Barrier) -> list[tuple[Any, ...]]:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                made = append(connection, item("alice", "k1"))
                connection.execute("COMMIT")
            return made

        return work

    results = together([writing() for _ in range(16)])
    stored = owner.execute("SELECT * FROM orchestration.ingress_attestations").fetchall()
    kept = [one for one in results if not isinstance(one, psycopg.Error)]
    assert len(stored) == 1
    assert {tuple(record) for ((*record, _),) in kept} == set(stored)
    assert sorted(replayed for ((*_, replayed),) in kept) == [False, *[True] * (len(kept) - 1)]
    # The older snapshots cannot see the record, and get 40001.
    assert errors_of(results) == ([] if isolation == "READ COMMITTED" else ["40001"] * 15)
    assert assert_whole(owner, "alice") == ["k1"]


@pytest.mark.invariant("INV-ATT-007")
def test_two_at_once_with_one_key_and_other_content_make_one_record_and_one_refusal(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    activate_policy(owner)
    one, other = login("ingest"), login("ingest")
    begin(one, "READ COMMITTED")
    append(one, item("alice", "k1"))
    following = background.submit(
        refused, lambda: append(other, item("alice", "k1") | {"payload_hash": digest("other")})
    )
    assert await_blocked(owner, backend(other)) == [backend(one)]
    one.execute("COMMIT")
    found = following.result(PATIENCE_SECONDS)
    assert_invariant(found, "INV-ATT-007", "P7303", "ingress_attestations")
    assert assert_whole(owner, "alice") == ["k1"]


@pytest.mark.invariant("INV-ATT-005", "INV-ATT-007")
def test_a_writer_that_waited_for_one_that_was_undone_takes_its_place(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    activate_policy(owner)
    one, other = login("ingest"), login("ingest")
    begin(one, "READ COMMITTED")
    append(one, item("alice", "k1"), item("alice", "k2"))
    following = background.submit(append, other, item("alice", "k1"))
    assert await_blocked(owner, backend(other)) == [backend(one)]
    one.execute("ROLLBACK")
    (made,) = following.result(PATIENCE_SECONDS)
    assert made[2] == 1
    assert assert_whole(owner, "alice") == ["k1"]


# Many chains.


@pytest.mark.invariant("INV-ATT-005")
@pytest.mark.parametrize("begun", [False, True], ids=["new chains", "chains that exist"])
def test_batches_of_the_same_callers_in_opposite_order_do_not_deadlock(
    owner: Connect, login: Callable[[str], Connect], begun: bool
) -> None:
    activate_policy(owner)
    callers = [f"caller {number}" for number in range(20)]
    if begun:
        append(owner, *(item(caller, "first") for caller in callers))

    def writing(number: int) -> Callable[[threading.Barrier], int]:
        connection = login("ingest")
        ordered = callers if number % 2 else callers[::-1]

        def work(barrier: threading.Barrier) -> int:
            barrier.wait()
            for again in range(10):
                with connection.transaction():
                    append(connection, *(item(caller, f"{number}-{again}") for caller in ordered))
            return number

        return work

    results = together([writing(number) for number in range(8)])
    assert results == list(range(8))
    for caller in callers:
        assert len(assert_whole(owner, caller)) == 80 + begun


@pytest.mark.invariant("INV-ATT-005")
def test_two_batches_in_opposite_order_wait_for_each_other_only_once(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    activate_policy(owner)
    one, other = login("ingest"), login("ingest")
    begin(one, "READ COMMITTED")
    append(one, item("a", "k1"), item("b", "k1"))
    following = background.submit(append, other, item("b", "k2"), item("a", "k2"))
    assert await_blocked(owner, backend(other)) == [backend(one)]
    one.execute("COMMIT")
    made = following.result(PATIENCE_SECONDS)
    assert [record[1] for record in made] == ["b", "a"]
    assert assert_whole(owner, "a") == assert_whole(owner, "b") == ["k1", "k2"]


# Events.


def record_event(connection: Connect, id: UUID, kind: str, status: str | None) -> tuple[Any, ...]:
    row = connection.execute(
        "SELECT * FROM orchestration.record_attestation_event(%s, %s, %s)", (id, kind, status)
    ).fetchone()
    assert row is not None
    return row


def racing(
    login: Callable[[str], Connect], id: UUID, kind: str, status: str | None, isolation: str
) -> Callable[[threading.Barrier], tuple[Any, ...]]:
    connection = login("executor")

    def work(barrier: threading.Barrier) -> tuple[Any, ...]:
        with connection:
            begin(connection, isolation)
            take_snapshot(connection)
            barrier.wait()
            made = record_event(connection, id, kind, status)
            connection.execute("COMMIT")
        return made

    return work


@pytest.fixture
def attested(owner: Connect) -> UUID:
    activate_policy(owner)
    id = append(owner, item("alice", "k1"))[0][0]
    assert isinstance(id, UUID)
    return id


@pytest.mark.invariant("INV-ATT-010")
@each_isolation
def test_an_execution_that_starts_many_times_at_once_starts_once(
    owner: Connect, login: Callable[[str], Connect], attested: UUID, isolation: str
) -> None:
    results = together(
        [racing(login, attested, "EXECUTION_STARTED", None, isolation) for _ in range(8)]
    )
    stored = owner.execute("SELECT * FROM orchestration.ingress_attestation_events").fetchall()
    kept = [one for one in results if not isinstance(one, psycopg.Error)]
    assert len(stored) == 1
    assert {tuple(event) for *event, _ in kept} == set(stored)
    assert sorted(replayed for *_, replayed in kept) == [False, *[True] * (len(kept) - 1)]
    assert errors_of(results) == ([] if isolation == "READ COMMITTED" else ["40001"] * 7)


@pytest.mark.invariant("INV-ATT-010")
@each_isolation
def test_an_execution_that_ends_in_two_ways_at_once_ends_in_one(
    owner: Connect, login: Callable[[str], Connect], attested: UUID, isolation: str
) -> None:
    record_event(owner, attested, "EXECUTION_STARTED", None)
    results = together(
        [
            racing(login, attested, "EXECUTION_COMPLETED", status, isolation)
            for status in ("SUCCESS", "FAILED")
        ]
    )
    (kept,) = [one for one in results if not isinstance(one, psycopg.Error)]
    (lost,) = [one for one in results if isinstance(one, psycopg.Error)]
    if isolation == "READ COMMITTED":
        found = Refusal.of(lost)
        assert_invariant(found, "INV-ATT-010", "P7301", "ingress_attestation_events")
        assert found.keys["terminal_status"] == kept[3]
    else:
        assert lost.sqlstate == "40001"
    assert (
        scalar(owner, "SELECT terminal_status FROM orchestration.ingress_attestation_status")
        == kept[3]
    )


@pytest.mark.invariant("INV-ATT-002")
@pytest.mark.parametrize("by", ["the function", "the owner's INSERT"])
@each_snapshot
def test_a_completion_that_does_not_see_the_start_gets_40001(
    owner: Connect, login: Callable[[str], Connect], attested: UUID, isolation: str, by: str
) -> None:
    if by == "the function":
        executor = login("executor")
        complete = partial(record_event, executor, attested, "EXECUTION_COMPLETED", "SUCCESS")
    else:
        executor = login("auditor")
        owner.execute(
            "GRANT INSERT ON orchestration.ingress_attestation_events TO symphony_auditor"
        )
        complete = partial(
            executor.execute,
            "INSERT INTO orchestration.ingress_attestation_events"
            " (attestation_id, event, terminal_status)"
            " VALUES (%s, 'EXECUTION_COMPLETED', 'SUCCESS')",
            (attested,),
        )
    begin(executor, isolation)
    take_snapshot(executor)
    record_event(owner, attested, "EXECUTION_STARTED", None)
    assert refused(complete).sqlstate == "40001"
    executor.execute("ROLLBACK")

    begin(executor, isolation)
    complete()
    executor.execute("COMMIT")
    kinds = owner.execute(
        "SELECT event FROM orchestration.ingress_attestation_events ORDER BY 1"
    ).fetchall()
    assert kinds == [("EXECUTION_COMPLETED",), ("EXECUTION_STARTED",)]


@pytest.mark.invariant("INV-ATT-002")
@each_isolation
def test_a_completion_without_a_start_is_refused_and_leaves_none(
    owner: Connect, login: Callable[[str], Connect], attested: UUID, isolation: str
) -> None:
    executor = login("executor")
    begin(executor, isolation)
    executor.execute("SAVEPOINT before")
    found = refused(lambda: record_event(executor, attested, "EXECUTION_COMPLETED", "SUCCESS"))
    assert_invariant(found, "INV-ATT-002", "P7301", "ingress_attestation_events")
    executor.execute("ROLLBACK TO before")
    executor.execute("COMMIT")
    assert owner.execute("SELECT FROM orchestration.ingress_attestation_events").rowcount == 0


@pytest.mark.invariant("INV-ATT-010")
def test_two_events_inserted_by_hand_at_once_are_left_to_the_primary_key(
    owner: Connect,
    database: scratch.Database,
    connections: Callable[[Any], Connect],
    background: ThreadPoolExecutor,
    attested: UUID,
) -> None:
    one, other = connections(database.url), connections(database.url)
    statement = (
        "INSERT INTO orchestration.ingress_attestation_events (attestation_id, event)"
        " VALUES (%s, 'EXECUTION_STARTED')"
    )
    begin(one, "READ COMMITTED")
    one.execute(statement, (attested,))
    following = background.submit(refused, lambda: other.execute(statement, (attested,)))
    assert await_blocked(owner, backend(other)) == [backend(one)]
    one.execute("COMMIT")
    found = following.result(PATIENCE_SECONDS)
    assert (found.sqlstate, found.constraint) == ("23505", "pk_ingress_attestation_events")


# Rotation against attesting callers.


LATE = """
SELECT count(*) FILTER (WHERE pg_xact_commit_timestamp(a.xact_id::text::xid)
                              > pg_xact_commit_timestamp(g.xmin)),
       count(*)
FROM orchestration.ingress_attestations a, orchestration.policy_gate g
"""


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-008")
@each_isolation
def test_a_retirement_gets_in_under_overlapping_callers_and_nothing_commits_after_it(
    superuser: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    activate_policy(superuser)
    control = login("control")
    control.execute("SET statement_timeout = '5s'")
    callers = OverlappingWriters(
        [login("ingest") for _ in range(CALLERS)],
        isolation,
        lambda one, caller, number: append(one, item(f"caller {caller}", f"k{number}")),
    )
    with callers.at_work(background) as futures:
        with control.transaction():
            activate_policy(control, "v2")
            control.execute("SELECT orchestration.retire_policy_version('v1')")
        refusals = [future.result(PATIENCE_SECONDS) for future in futures]

    late, attested = superuser.execute(LATE).fetchone() or (None, None)
    assert late == 0
    assert attested >= CALLERS
    assert all("P7105" in codes for codes in refusals)
    allowed = {"P7105"} if isolation == "READ COMMITTED" else {"P7105", "40001"}
    assert set().union(*refusals) <= allowed
    for number in range(CALLERS):
        assert_whole(superuser, f"caller {number}")


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-008")
def test_without_its_gate_a_retirement_overtakes_a_caller_in_flight(
    superuser: Connect, login: Callable[[str], Connect]
) -> None:
    for id in ("v1", "v2"):
        activate_policy(superuser, id)
    superuser.execute("DROP TRIGGER gate ON orchestration.policy_versions")
    ingest = login("ingest")
    begin(ingest, "READ COMMITTED")
    append(ingest, item("alice", "k1"))
    superuser.execute("UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE id = 'v1'")
    ingest.execute("COMMIT")
    late = scalar(
        superuser,
        "SELECT count(*) FROM orchestration.ingress_attestations a"
        " JOIN orchestration.policy_versions p ON p.id = a.policy_version_id"
        " WHERE pg_xact_commit_timestamp(a.xact_id::text::xid) > pg_xact_commit_timestamp(p.xmin)",
    )
    assert late == 1


@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize("version", ["v1", "v2"], ids=["the old version", "the new version"])
@each_snapshot
def test_a_snapshot_older_than_a_rotation_gets_40001(
    owner: Connect, login: Callable[[str], Connect], isolation: str, version: str
) -> None:
    activate_policy(owner, "v1")
    ingest = login("ingest")
    begin(ingest, isolation)
    take_snapshot(ingest)
    activate_policy(owner, "v2")
    assert refused(lambda: append(ingest, item("alice", "k1", version))).sqlstate == "40001"
    ingest.execute("ROLLBACK")
    begin(ingest, isolation)
    append(ingest, item("alice", "k1", version))
    ingest.execute("COMMIT")
    assert assert_whole(owner, "alice") == ["k1"]


@pytest.mark.invariant("INV-ATT-008")
@each_snapshot
def test_an_import_under_a_version_that_its_snapshot_does_not_see_gets_40001(
    owner: Connect,
    database: scratch.Database,
    connections: Callable[[Any], Connect],
    isolation: str,
) -> None:
    activate_policy(owner, "v1")
    importing = connections(database.url)
    begin(importing, isolation)
    take_snapshot(importing)
    activate_policy(owner, "v2")
    found = refused(
        lambda: importing.execute(
            "INSERT INTO orchestration.ingress_attestations (caller_identity, idempotency_key,"
            " payload_hash, policy_version_id) VALUES ('alice', 'k1', repeat('0', 64), 'v2')"
        )
    )
    assert found.sqlstate == "40001"


# The figure of multixacts.


def next_multixact(superuser: Connect) -> int:
    superuser.execute("CHECKPOINT")
    return int(scalar(superuser, "SELECT next_multixact_id FROM pg_control_checkpoint()"))


@pytest.mark.own_cluster
@pytest.mark.invariant("INV-ATT-008")
def test_attesting_makes_no_multixact_and_a_foreign_key_to_the_policy_would() -> None:
    # A multixact belongs to the whole cluster, so no other session can be active in this test.
    with scratch.own_server({"fsync": "off", "autovacuum": "off"}) as at:
        url = scratch.create_database(at, "orchestration_scratch_multixacts")
        scratch.upgrade(url)
        with connect(url) as superuser:
            activate_policy(superuser)

            def attest_all(round: str) -> int:
                before = next_multixact(superuser)

                def writing(number: int) -> Callable[[threading.Barrier], int]:
                    def work(barrier: threading.Barrier) -> int:
                        with connect(url) as connection:
                            barrier.wait()
                            for again in range(20):
                                with connection.transaction():
                                    append(connection, item(f"caller {number}", f"{round}-{again}"))
                        return number

                    return work

                assert together([writing(number) for number in range(16)]) == list(range(16))
                return next_multixact(superuser) - before

            assert attest_all("as it is") == 0
            superuser.execute(
                "ALTER TABLE orchestration.ingress_attestations ADD FOREIGN KEY (policy_version_id)"
                " REFERENCES orchestration.policy_versions"
            )
            assert attest_all("with a foreign key") > 0
