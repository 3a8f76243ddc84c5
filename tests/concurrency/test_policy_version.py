"""Policy versions under concurrency: one rotation wins, and no write that was checked against the
old state commits after the change."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import URL
from tools import scratch

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
    Refusal,
    activate_policy,
    assert_invariant,
    await_blocked,
    backend,
    digest,
    refusal,
    scalar,
)

WRITERS = 8

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])


def rotate(connection: Connect, id: str, *, expected_active: str | None = None) -> None:
    connection.execute(
        "SELECT FROM orchestration.rotate_policy_version(p_id => %s, p_description => 'test',"
        " p_checksum => %s, p_grace => interval '1 hour', p_expected_active => %s)",
        (id, digest(id), expected_active),
    )


def retire(connection: Connect, id: str) -> None:
    connection.execute("SELECT FROM orchestration.retire_policy_version(%s)", (id,))


def require(connection: Connect, id: str) -> None:
    connection.execute("SELECT orchestration.require_policy_accepted(%s)", (id,))


def statuses(connection: Connect) -> dict[str, str]:
    return dict(
        connection.execute("SELECT id, status FROM orchestration.policy_versions").fetchall()
    )


# Two changes.


def rotation(
    connection: Connect, id: str, isolation: str, expected_active: str | None
) -> Callable[[threading.Barrier], str]:
    def work(barrier: threading.Barrier) -> str:
        with connection:
            begin(connection, isolation)
            take_snapshot(connection)
            barrier.wait()
            rotate(connection, id, expected_active=expected_active)
            connection.execute("COMMIT")
        return id

    return work


@pytest.mark.invariant("INV-POL-005")
@pytest.mark.parametrize("expected_active", ["v1", None], ids=["expected", "not expected"])
@each_snapshot
def test_of_two_rotations_from_one_snapshot_one_wins(
    owner: Connect, login: Callable[[str], Connect], isolation: str, expected_active: str | None
) -> None:
    activate_policy(owner)
    results = together(
        [rotation(login("control"), id, isolation, expected_active) for id in ("v2", "v3")]
    )
    (winner,) = [one for one in results if isinstance(one, str)]
    (loser,) = [one for one in results if isinstance(one, psycopg.Error)]
    assert loser.sqlstate == "40001"
    assert statuses(owner) == {"v1": "GRACE", winner: "ACTIVE"}


@pytest.mark.invariant("INV-POL-005")
def test_of_two_rotations_from_one_expected_version_one_wins(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    activate_policy(owner)
    results = together(
        [rotation(login("control"), id, "READ COMMITTED", "v1") for id in ("v2", "v3")]
    )
    (winner,) = [one for one in results if isinstance(one, str)]
    (loser,) = [one for one in results if isinstance(one, psycopg.Error)]
    assert_invariant(Refusal.of(loser), "INV-POL-005", "P7104", "policy_versions")
    assert Refusal.of(loser).keys["active"] == winner
    assert statuses(owner) == {"v1": "GRACE", winner: "ACTIVE"}


@pytest.mark.invariant("INV-POL-005", "INV-POL-008")
def test_two_rotations_that_expect_nothing_follow_each_other(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    activate_policy(owner)
    results = together(
        [rotation(login("control"), id, "READ COMMITTED", None) for id in ("v2", "v3")]
    )
    assert results == ["v2", "v3"]
    assert sorted(statuses(owner).values()) == ["ACTIVE", "GRACE", "RETIRED"]
    assert statuses(owner)["v1"] == "RETIRED"


@pytest.mark.invariant("INV-POL-005")
@each_isolation
def test_of_many_first_rotations_one_is_active(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    results = together(
        [rotation(login("control"), f"v{n}", isolation, None) for n in range(WRITERS)]
    )
    lost = {one.sqlstate for one in results if isinstance(one, psycopg.Error)}
    assert lost <= {"40001"}
    assert sorted(statuses(owner)) == sorted(one for one in results if isinstance(one, str))
    assert list(statuses(owner).values()).count("ACTIVE") == 1


@pytest.mark.invariant("INV-POL-005", "INV-POL-007")
@each_isolation
def test_two_owners_who_insert_at_once_leave_one_active(
    owner: Connect,
    database: scratch.Database,
    connections: Callable[[URL], Connect],
    isolation: str,
) -> None:
    def insertion(id: str) -> Callable[[threading.Barrier], str]:
        connection = connections(database.url)

        def work(barrier: threading.Barrier) -> str:
            with connection:
                begin(connection, isolation)
                take_snapshot(connection)
                barrier.wait()
                connection.execute(
                    "INSERT INTO orchestration.policy_versions (id, description, checksum)"
                    " VALUES (%s, 'test', %s)",
                    (id, digest(id)),
                )
                connection.execute("COMMIT")
            return id

        return work

    results = together([insertion("v1"), insertion("v2")])
    (winner,) = [one for one in results if isinstance(one, str)]
    (loser,) = [one for one in results if isinstance(one, psycopg.Error)]
    assert loser.sqlstate == ("P7104" if isolation == "READ COMMITTED" else "40001")
    assert statuses(owner) == {winner: "ACTIVE"}


@pytest.mark.invariant("INV-POL-005")
def test_where_the_guard_and_the_gate_are_gone_the_index_decides_the_race(
    owner: Connect, database: scratch.Database, connections: Callable[[URL], Connect]
) -> None:
    owner.execute("DROP TRIGGER guard ON orchestration.policy_versions")
    owner.execute("DROP TRIGGER gate ON orchestration.policy_versions")

    def insertion(id: str) -> Callable[[threading.Barrier], str]:
        connection = connections(database.url)

        def work(barrier: threading.Barrier) -> str:
            with connection:
                begin(connection, "READ COMMITTED")
                barrier.wait()
                connection.execute(
                    "INSERT INTO orchestration.policy_versions (id, description, checksum,"
                    " activated_at, created_at, db_user, xact_id) VALUES (%s, 'test', %s,"
                    " clock_timestamp(), clock_timestamp(), 'x', 1)",
                    (id, digest(id)),
                )
                connection.execute("COMMIT")
            return id

        return work

    results = together([insertion("v1"), insertion("v2")])
    (loser,) = [one for one in results if isinstance(one, psycopg.Error)]
    assert (loser.sqlstate, loser.diag.constraint_name) == ("23505", "uq_policy_versions_active")
    assert list(statuses(owner).values()) == ["ACTIVE"]


@pytest.mark.invariant("INV-POL-002", "INV-POL-005", "INV-POL-007", "INV-ATT-008")
@each_snapshot
@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda control: rotate(control, "v4", expected_active="v2"), "P7104"),
        (lambda control: rotate(control, "v4", expected_active="v3"), None),
        (lambda control: retire(control, "v3"), "P7103"),
        (lambda control: retire(control, "v2"), None),
        (lambda control: retire(control, "v1"), "P7101"),
        (lambda control: retire(control, "v9"), "P7105"),
    ],
    ids=[
        *("from what was ACTIVE", "from what is ACTIVE", "retire the ACTIVE", "retire the GRACE"),
        *("retire the RETIRED", "retire the unknown"),
    ],
)
def test_a_change_from_an_older_snapshot_gets_40001(
    owner: Connect,
    login: Callable[[str], Connect],
    isolation: str,
    act: Callable[[Connect], None],
    code: str | None,
) -> None:
    for id in ("v1", "v2"):
        activate_policy(owner, id)
    control = login("control")
    begin(control, isolation)
    take_snapshot(control)
    # Since then v1 has become RETIRED, v2 GRACE and v3 ACTIVE.
    activate_policy(owner, "v3")
    assert refused(lambda: act(control)).sqlstate == "40001"
    control.execute("ROLLBACK")

    begin(control, isolation)
    if code is None:
        act(control)
    else:
        assert refused(lambda: act(control)).sqlstate == code


@pytest.mark.invariant("INV-POL-002")
def test_of_two_retirements_by_one_login_one_retires(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    for id in ("v1", "v2"):
        activate_policy(owner, id)

    def retirement() -> Callable[[threading.Barrier], bool]:
        connection = login("control")

        def work(barrier: threading.Barrier) -> bool:
            barrier.wait()
            return bool(
                scalar(connection, "SELECT replayed FROM orchestration.retire_policy_version('v1')")
            )

        return work

    assert sorted(together([retirement(), retirement()])) == [False, True]
    acts = "SELECT count(*) FROM orchestration.audit_log WHERE action = 'RETIRE'"
    assert scalar(owner, acts) == 1


# A change and writers.


def judge(connection: Connect, _writer: int, _number: int) -> None:
    require(connection, "v1")
    connection.execute("INSERT INTO public.judged DEFAULT VALUES")


@pytest.fixture
def judged(superuser: Connect) -> None:
    """A table into which callers write, in the transaction in which their policy was checked."""
    superuser.execute("CREATE TABLE public.judged (id uuid DEFAULT gen_random_uuid())")
    superuser.execute("GRANT INSERT ON public.judged TO symphony_ingest")


LATE = """
SELECT count(*) FILTER (WHERE pg_xact_commit_timestamp(j.xmin) > pg_xact_commit_timestamp(g.xmin)),
       count(*)
FROM public.judged j, orchestration.policy_gate g
"""


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.usefixtures("judged")
@each_isolation
def test_a_change_gets_in_under_overlapping_writers_and_none_commits_after_it(
    owner: Connect,
    superuser: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    activate_policy(owner, "v1")
    control = login("control")
    control.execute("SET statement_timeout = '5s'")
    writers = OverlappingWriters([login("ingest") for _ in range(WRITERS)], isolation, judge)
    with writers.at_work(background) as futures:
        with control.transaction():
            rotate(control, "v2", expected_active="v1")
            retire(control, "v1")
        refusals = [future.result(PATIENCE_SECONDS) for future in futures]

    assert statuses(owner) == {"v1": "RETIRED", "v2": "ACTIVE"}
    late, written = superuser.execute(LATE).fetchone() or (None, None)
    assert late == 0
    assert written >= WRITERS
    # Every writer was rejected in the end. Writers with older snapshots got 40001 as well.
    assert all("P7105" in codes for codes in refusals)
    allowed = {"P7105"} if isolation == "READ COMMITTED" else {"P7105", "40001"}
    assert set().union(*refusals) <= allowed


@pytest.mark.invariant("INV-ATT-008")
@each_snapshot
@pytest.mark.parametrize("version", ["v1", "v2"], ids=["the old version", "the new version"])
def test_an_older_snapshot_gets_40001(
    owner: Connect, login: Callable[[str], Connect], isolation: str, version: str
) -> None:
    activate_policy(owner, "v1")
    ingest, control = login("ingest"), login("control")
    begin(ingest, isolation)
    take_snapshot(ingest)
    with control.transaction():
        rotate(control, "v2")
        retire(control, "v1")
    assert refused(lambda: require(ingest, version)).sqlstate == "40001"
    ingest.execute("ROLLBACK")

    begin(ingest, isolation)
    if version == "v2":
        require(ingest, version)
    else:
        found = refused(lambda: require(ingest, version))
        assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")


@pytest.mark.invariant("INV-ATT-008")
@each_snapshot
def test_a_writer_that_waited_for_a_change_with_an_older_snapshot_gets_40001(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    activate_policy(owner, "v1")
    ingest, control = login("ingest"), login("control")
    with control.transaction():
        rotate(control, "v2")
        begin(ingest, isolation)
        waiting = background.submit(lambda: refused(lambda: require(ingest, "v1")))
        await_blocked(owner, backend(ingest))
    assert waiting.result(PATIENCE_SECONDS).sqlstate == "40001"


@pytest.mark.invariant("INV-ATT-008")
def test_under_read_committed_a_writer_that_waited_is_checked_against_the_new_state(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    activate_policy(owner, "v1")
    ingest, control = login("ingest"), login("control")
    with control.transaction():
        rotate(control, "v2")
        retire(control, "v1")
        begin(ingest, "READ COMMITTED")
        take_snapshot(ingest)
        waiting = background.submit(lambda: refused(lambda: require(ingest, "v1")))
        await_blocked(owner, backend(ingest))
    found = waiting.result(PATIENCE_SECONDS)
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")


@pytest.mark.invariant("INV-ATT-008")
@each_isolation
def test_a_change_waits_for_a_writer_that_was_checked_before(
    owner: Connect,
    login: Callable[[str], Connect],
    background: ThreadPoolExecutor,
    isolation: str,
) -> None:
    activate_policy(owner, "v1")
    ingest, control = login("ingest"), login("control")
    begin(ingest, isolation)
    require(ingest, "v1")
    changing = background.submit(rotate, control, "v2")
    assert await_blocked(owner, backend(control)) == [backend(ingest)]
    assert statuses(owner) == {"v1": "ACTIVE"}
    ingest.execute("COMMIT")
    changing.result(PATIENCE_SECONDS)
    assert statuses(owner) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.invariant("INV-ATT-008")
def test_a_change_gives_up_where_a_writer_idles_and_the_others_go_on(
    owner: Connect, login: Callable[[str], Connect], background: ThreadPoolExecutor
) -> None:
    activate_policy(owner, "v1")
    idle, other, control = login("ingest"), login("ingest"), login("control")
    begin(idle, "READ COMMITTED")
    require(idle, "v1")
    changing = background.submit(refused, lambda: rotate(control, "v2"))
    await_blocked(owner, backend(control))
    following = background.submit(require, other, "v1")
    assert await_blocked(owner, backend(other)) == [backend(control)]
    assert changing.result(PATIENCE_SECONDS).sqlstate == "55P03"
    following.result(PATIENCE_SECONDS)
    idle.execute("COMMIT")
    rotate(control, "v2")
    assert statuses(owner) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.invariant("INV-ATT-008")
def test_retiring_gives_up_where_a_writer_idles(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    for id in ("v1", "v2"):
        activate_policy(owner, id)
    idle, control = login("ingest"), login("control")
    begin(idle, "READ COMMITTED")
    require(idle, "v1")
    assert refused(lambda: retire(control, "v1")).sqlstate == "55P03"
    assert statuses(owner) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.invariant("INV-ATT-008")
def test_the_owners_own_change_is_gated_by_the_trigger_and_by_nothing_else(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    for id in ("v1", "v2"):
        activate_policy(owner, id)
    ingest = login("ingest")
    begin(ingest, "READ COMMITTED")
    require(ingest, "v1")
    owner.execute("SET lock_timeout = '100ms'")
    statement = "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE id = 'v1'"
    assert refusal(owner, statement).sqlstate == "55P03"
    assert statuses(owner)["v1"] == "GRACE"

    ingest.execute("COMMIT")
    owner.execute("DROP TRIGGER gate ON orchestration.policy_versions")
    begin(ingest, "READ COMMITTED")
    require(ingest, "v1")
    owner.execute(statement)
    assert statuses(owner)["v1"] == "RETIRED"
    ingest.execute("COMMIT")


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-008")
def test_in_replica_mode_a_change_waits_for_writers_too(
    superuser: Connect, owner: Connect, login: Callable[[str], Connect]
) -> None:
    for id in ("v1", "v2"):
        activate_policy(owner, id)
    ingest = login("ingest")
    begin(ingest, "READ COMMITTED")
    require(ingest, "v1")
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("SET lock_timeout = '100ms'")
    found = refusal(
        superuser,
        "UPDATE orchestration.policy_versions SET status = 'RETIRED', retired_at = now()"
        " WHERE id = 'v1'",
    )
    assert found.sqlstate == "55P03"
